"""The verb that ranks tokens by how little they were trained: tokens."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from forensics.cli.options import (
    DeviceOption,
    FormatOption,
    MaxFetchOption,
    OutputOption,
    PlanOption,
    WorkspaceOption,
    open_workspace,
)
from forensics.cli.output import Format, PromptProgress, emit_rows, printable, say

if TYPE_CHECKING:
    from forensics.token_answer import UndertrainedTokens
    from forensics.token_source import TokenSource

SHOWN = (
    "rank",
    "token_id",
    "text",
    "category",
    "indicator",
    "below_gap",
    "below_2_percent",
    "never_updated",
    "max_probability",
    "verified",
    "label",
    "said",
    "evidence",
)
MOST_SHOWN = 40


def tokens(
    model: Annotated[
        str,
        typer.Argument(metavar="RUN|MODEL", help="A run or fork (RUN@STEP too); a model folder or file; owner/name."),
    ],
    checkpoint: Annotated[int | None, typer.Option(help="Of a run [default: its last].")] = None,
    indicator: Annotated[str | None, typer.Option(metavar="NAME", help="Rank by this indicator.")] = None,
    unused: Annotated[
        str | None,
        typer.Option(
            metavar="IDS", help="Rows known to be unused, such as 177-187,50280-50303; with --repair: to be reset."
        ),
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A tokenizer.json, where none lies beside the weights.")
    ] = None,
    compare: Annotated[
        str | None, typer.Option(metavar="OTHER", help="Another checkpoint (RUN@STEP) or model: who joined, who left?")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Prompt the model with its candidates: can it repeat them?")
    ] = False,
    until_settled: Annotated[
        bool, typer.Option("--until-settled", help="Ask no further prompt about a token that one gave 1 %.")
    ] = False,
    precision: Annotated[str, typer.Option("--precision", help="Of prompting: fp32 or bf16.")] = "fp32",
    device: DeviceOption = "auto",
    track: Annotated[
        bool,
        typer.Option("--track", help="Follow every token of a run through its checkpoints, against its exposures."),
    ] = False,
    checkpoints: Annotated[
        str | None, typer.Option(metavar="LIST", help="With --track: 0,20,40, or 'every 100' [default: all].")
    ] = None,
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Write the model to -o DIR, its untrained (or --unused) rows reset."),
    ] = False,
    max_fetch: MaxFetchOption = None,
    limit: Annotated[
        int | None, typer.Option(min=0, help="Print so many rows [default: 40 in a table, else all].")
    ] = None,
    report: Annotated[Path | None, typer.Option(metavar="FILE", help="Write FILE.md (and a PNG) or FILE.html.")] = None,
    output: OutputOption = None,
    plan: PlanOption = False,
    workspace: WorkspaceOption = None,
    format: FormatOption = Format.table,
) -> None:
    """Rank tokens by how little they were trained, from the embedding matrices and the tokenizer alone.

    Which rows are known to be unused, which indicator they say can be trusted, and where the gap in it lies, is found
    and shown; the published 2 % rule stands beside it. --verify alone needs the whole model: it is prompted with every
    candidate by either cut, and with control tokens for a base rate. --track follows each token through the checkpoints
    of a run: when it left the untrained rows, after how many exposures. --repair writes the model with its untrained
    rows set to the mean of the trained ones. Each goes on where it was interrupted, but --repair, which begins anew.

    Example: forensics tokens demo
    """
    from data_index.exports import require_known_suffix, write_table
    from forensics.report_file import require_report_suffix
    from forensics.token_report import facts, write_report
    from forensics.token_source import token_source
    from forensics.token_verification import Verifying
    from forensics.undertrained_tokens import tokens as find

    _require_one_question(track, repair, verify or until_settled, compare is not None, checkpoint is not None)
    if checkpoints is not None and not track:
        raise typer.BadParameter("--checkpoints goes with --track; one checkpoint is chosen with --checkpoint")
    if output is not None and not repair:
        require_known_suffix(output)
    if report is not None:
        require_report_suffix(report)
    there, known = open_workspace(workspace), _ids_of(unused)
    asked = {"indicator": indicator, "tokenizer": tokenizer, "workspace": there}
    if track:
        from forensics.cli.tracking import track_tokens

        given = asked | {"unused": known, "max_fetch": max_fetch}
        track_tokens(model, checkpoints, given, plan, limit, report, output, format)
        return
    if repair:
        from forensics.cli.repairing import repair_model

        given = asked | {"checkpoint": checkpoint, "rows": known, "max_fetch": max_fetch}
        repair_model(model, output, given, plan, limit, report, format)
        return
    how = Verifying(every_prompt=not until_settled, device=device, precision=precision, max_fetch=max_fetch)
    wanted = how if verify or until_settled else False
    if plan:
        sources = [token_source(model, there, checkpoint=checkpoint, tokenizer=tokenizer)]
        sources += [token_source(compare, there, tokenizer=tokenizer)] if compare else []
        if wanted:
            from forensics.verification_plan import plan_verification

            emit_rows([plan_verification(sources[0], there, how, indicator=indicator, unused=known)], format)
            return
        emit_rows([row for source in sources for row in _plan(source)], format)
        return
    found = find(
        model,
        checkpoint,
        indicator=indicator,
        unused=known,
        tokenizer=tokenizer,
        verify=wanted,
        workspace=there,
        progress=PromptProgress(),
    )
    for name, value in facts(found):
        say(printable(f"{name}: {value}"))
    if report is not None:
        say("wrote " + " and ".join(map(str, write_report(found, report))))
    if compare is not None:
        # Judged by the same indicator, or the two could not be compared.
        other = find(compare, indicator=found.indicator, unused=known, tokenizer=tokenizer, workspace=there)
        _compare(found, other, limit, output, format)
        return
    if output is not None:
        write_table(output, found.table())
        say(f"wrote {len(found.rows):,} rows to {output}")
        return
    _print(found, limit, format)


def _print(found: UndertrainedTokens, limit: int | None, format: Format) -> None:
    if format is not Format.table:
        emit_rows(found.rows[:limit], format, found.columns)
        return
    from forensics.token_answer import for_people

    most = MOST_SHOWN if limit is None else limit
    shown = [name for name in SHOWN if any(row[name] not in (None, []) for row in found.rows)]
    emit_rows([for_people(found.analysis, row) for row in found.rows[:most]], format, shown)
    if limit is None and len(found.rows) > most:
        say(f"the first {most} of {len(found.rows):,} (--limit N prints more, -o FILE writes all)")


def _require_one_question(track: bool, repair: bool, verify: bool, compare: bool, checkpoint: bool) -> None:
    if track and (repair or verify or compare or checkpoint):
        raise typer.BadParameter(
            "--track goes through --checkpoints; it takes no --checkpoint, --verify, --compare or --repair"
        )
    if repair and (verify or compare):
        raise typer.BadParameter("--repair goes with neither --verify nor --compare")


def _compare(
    found: UndertrainedTokens, other: UndertrainedTokens, limit: int | None, output: Path | None, format: Format
) -> None:
    from data_index.exports import write_table
    from forensics.token_comparison import COLUMNS, compared

    together = compared(found, other)
    for message in together.messages:
        say(message)
    say(
        f"from {printable(together.one)} to {printable(together.other)}, by {together.indicator}: "
        f"{len(together.joined):,} joined the candidates, {len(together.left):,} left"
    )
    if output is not None:
        import pyarrow

        write_table(output, pyarrow.Table.from_pylist([*together.rows]))
        say(f"wrote {len(together.rows):,} rows to {output}")
        return
    rows: list[dict[str, Any]] = [*together.rows]
    if format is Format.table:  # those that changed sides first
        rows.sort(key=lambda row: row["change"] is None)
        limit = MOST_SHOWN if limit is None else limit
    emit_rows(rows[:limit], format, COLUMNS)


def _plan(source: TokenSource) -> list[dict[str, Any]]:
    """What would be read: headers have been, tensors have not."""
    remote = not isinstance(source.place, Path)
    roles = {id(matrix): role for role, matrix in source.embeddings.second_moments.items()}
    return [
        {
            "model": source.label,
            "tensor": f"{matrix.name} (second moments)" if id(matrix) in roles else matrix.name,
            "shape": list(matrix.shape),
            "dtype": matrix.dtype,
            "bytes_to_read": matrix.num_bytes,
            "bytes_to_fetch": matrix.num_bytes if remote else 0,
        }
        for matrix in source.embeddings.matrices
    ]


def _ids_of(given: str | None) -> list[int] | None:
    """Ids and stretches FIRST-LAST, both ends meant, as people write them."""
    if given is None:
        return None
    ids: list[int] = []
    for part in given.strip("[] ").replace(" ", "").split(","):
        first, dash, last = part.partition("-")
        if not first.isdigit() or (dash and not last.isdigit()) or int(last or first) - int(first) > 2**24:
            raise typer.BadParameter(f"--unused takes ids such as 177-187,50280, not {part!r}")
        ids += range(int(first), int(last or first) + 1)
    return ids


COMMANDS = (tokens,)
