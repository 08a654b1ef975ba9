"""Everything that can go wrong with a stated reason.

    ForensicsError
    ├── UnknownRun, RunExists, FindingExists, UnknownLayout, NewerWorkspace
    ├── StepOutOfRange, MissingCheckpoint, MissingState, UnknownInstance, UnknownDocument, UnknownOrigin,
    │   MissingMetric
    ├── MissingFile
    ├── Unreachable              a server gave no right answer
    │   ├── Offline              and was not asked
    │   ├── IgnoresRanges        but the whole file
    │   └── AccessDenied         and wants a token
    ├── TooMuchToFetch
    ├── CorruptFile
    │   ├── ChangedFile          not the file it was when it was first read
    │   ├── RefusedPack          not byte for byte what `pack` writes, or nothing to be opened
    │   └── UnsafeFile           the file would run code, or lies about its size
    ├── OrderMismatch            the data are not proved to be the run's data
    ├── UnknownOrder             what the steps read was never published, or not said
    ├── UnsupportedRecipe        a setting that defines the step differently
    ├── InvalidEdit, InvalidRange
    ├── FailedFunction
    │   └── ChangedModel         and left the model other than it was
    ├── MissingPackage           an extra of the toolkit is not installed
    ├── UnknownTask, UnusableTask
    ├── RefusedQuery, FailedQuery
    ├── RefusedJob, UnknownJob
    └── Busy, AddressInUse, DiskFull, NotWritable, OutOfMemory, NotDeterministic

Each class is also the builtin it resembles, so that callers may catch either. A message says what was asked, what is
there, and what to do.
"""


class ForensicsError(Exception):
    """Base of every error the toolkit states on purpose.

    `edit_number`: of several edits the one that it is about, from 0.
    """

    edit_number: int | None = None

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else type(self).__name__


# What reading a damaged or hostile file may raise where its reader did not foresee it. Errors of ours are of these
# kinds too: let them pass first.
UNFORESEEN = (
    ArithmeticError,
    AttributeError,
    LookupError,
    OSError,
    RecursionError,
    StopIteration,
    TypeError,
    ValueError,
)


class UnknownRun(ForensicsError, LookupError):
    """No run or fork of that name in the workspace."""


class RunExists(ForensicsError, FileExistsError):
    """A run of that name is already registered."""


class FindingExists(ForensicsError, FileExistsError):
    """Another finding of that name is kept already."""


class UnknownLayout(ForensicsError, ValueError):
    """The folder is in no published layout that the toolkit reads."""


class NewerWorkspace(ForensicsError, RuntimeError):
    """The workspace was written by a later version of the toolkit."""


class StepOutOfRange(ForensicsError, LookupError):
    """The run did not take that step."""


class MissingCheckpoint(ForensicsError, LookupError):
    """No checkpoint at that step."""


class MissingState(ForensicsError, LookupError):
    """The checkpoint lacks a state that the question needs."""


class UnknownInstance(ForensicsError, LookupError):
    """The run has no such instance."""


class UnknownDocument(ForensicsError, LookupError):
    """The run has no such document."""


class UnknownOrigin(ForensicsError, LookupError):
    """No tags came from there."""


class MissingMetric(ForensicsError, LookupError):
    """Nothing of that name was logged, measured or published of the run."""


class MissingFile(ForensicsError, FileNotFoundError):
    """A file that the run names is not there."""


class Unreachable(ForensicsError, ConnectionError):
    """A server gave no right answer, however often it was asked."""


class IgnoresRanges(Unreachable):
    """The server would send a whole file for a part of it; nothing was taken."""


class Offline(Unreachable):
    """What was asked for is not kept here, and HF_HUB_OFFLINE forbids to fetch it."""


class AccessDenied(Unreachable, PermissionError):
    """The server wants a token, or one with more rights."""


class TooMuchToFetch(ForensicsError, OSError):
    """An answer would fetch more from servers than was allowed; nothing was fetched."""


class CorruptFile(ForensicsError, ValueError):
    """A file is truncated, changed, or not what its name says."""


class ChangedFile(CorruptFile):
    """A file is no longer the one that was fetched, or looked at, before."""


class UnsafeFile(CorruptFile):
    """A file that would run code, reach outside its folder, or claim an absurd size."""


class RefusedPack(CorruptFile):
    """A pack that was changed, is not of the one form that packs have, or holds what no pack may; nothing of it was
    written."""


class OrderMismatch(ForensicsError, ValueError):
    """The data or their order contradict the trainer's own record."""


class UnknownOrder(ForensicsError, LookupError):
    """What the run's steps read was never published, or no one has said where it is."""


class UnsupportedRecipe(ForensicsError, NotImplementedError):
    """A setting of the trainer defines the step differently and is not supported."""


class InvalidEdit(ForensicsError, ValueError):
    """An edit that cannot be read, or that hits nothing."""


class InvalidRange(ForensicsError, ValueError):
    """A range of steps that cannot be read."""


class FailedFunction(ForensicsError, RuntimeError):
    """A function that the user named could not be found, failed, or gave something else than asked for."""


class ChangedModel(FailedFunction):
    """A function of the user's changed the model that it was to measure: read the checkpoint again."""


class MissingPackage(ForensicsError, ImportError):
    """The question needs a package that only an extra of the toolkit installs."""


class UnknownTask(ForensicsError, LookupError):
    """The evaluation harness has no task of that name."""


class UnusableTask(ForensicsError, ValueError):
    """A task of the evaluation harness that cannot be read, or that cannot be measured as asked."""


class RefusedQuery(ForensicsError, PermissionError):
    """SQL that is more than one read-only statement."""


class FailedQuery(ForensicsError, ValueError):
    """SQL that DuckDB could not answer."""


class RefusedJob(ForensicsError, PermissionError):
    """A command line that does not run on its own."""


class UnknownJob(ForensicsError, LookupError):
    """No job of that name in the workspace."""


class Busy(ForensicsError, BlockingIOError):
    """Another process is writing the same thing."""


class AddressInUse(ForensicsError, OSError):
    """Something else listens on that port, or this user may not."""


class DiskFull(ForensicsError, OSError):
    """Not enough free disk; nothing was written."""


class NotWritable(ForensicsError, PermissionError):
    """A folder that has to be written to is read-only, or someone else's."""


class OutOfMemory(ForensicsError, MemoryError):
    """The device cannot hold the step."""


class NotDeterministic(ForensicsError, RuntimeError):
    """An operation has no deterministic kernel on this device."""
