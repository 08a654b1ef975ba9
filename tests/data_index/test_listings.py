"""The official lists are read as they stand, and every mistake in them is found."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from data_index.catalog_file import Fact, ReleasedRun, Value
from data_index.errors import CorruptFile, MissingFile, UnsafeFile
from data_index.listing_checks import mistakes, mistakes_among, off_grid_steps, releases_of
from data_index.listings import Listing, Mistake, read_listing, read_listings

PUBLISHED = Path(os.environ.get("FORENSICS_FIXTURES", "/nowhere")) / "listings"
published = pytest.mark.skipif(not PUBLISHED.is_dir(), reason="published listings are not beside the checkout")

RUN = "Step,Checkpoint Directory"
INGREDIENTS = "Ingredient,Step,Checkpoint Directory"
STAGES = "Stage,Step,Tokens Seen,Checkpoint Directory"
PROVENANCE = "Dataset,Data Directory"
BASE = "https://olmo-checkpoints.org/ai2-llm"


def write(path: Path, header: str, rows: Sequence[str], newline: str = "\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(newline.join([header, *rows]).encode())
    return path


def run_rows(steps: Sequence[int], run: str = "tiny/abc") -> list[str]:
    return [f"{step},{BASE}/{run}/step{step}-unsharded/" for step in steps]


def stage_rows(stage: str, steps: Sequence[int], base: int, per_step: int = 100) -> list[str]:
    return [f"{stage},{step},{base + step * per_step},{BASE}/m/{stage}/step{step}/" for step in steps]


def known(name: str = "tiny", **facts: Value) -> ReleasedRun:
    return ReleasedRun(
        name=name, family="f", facts={key: Fact(value=value, source="s") for key, value in facts.items()}
    )


def kinds(found: Sequence[Mistake]) -> list[str]:
    return [mistake.kind for mistake in found]


# --- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("end", ["", "end"])
def test_either_kind_of_line_end_and_none_at_the_last_line_are_read(newline: str, end: str, tmp_path: Path) -> None:
    path = write(tmp_path / "tiny.csv", RUN, run_rows([0, 1000]), newline)
    path.write_bytes(path.read_bytes() + (newline.encode() if end else b""))
    listing = read_listing(path)

    assert [(row.line, row.step, row.step_of_address, row.run_id) for row in listing.rows] == [
        (2, 0, 0, "abc"),
        (3, 1000, 1000, "abc"),
    ]
    assert (listing.shape, listing.num_rows, listing.num_unique) == ("run", 2, 2)


def test_all_shapes_are_read(tmp_path: Path) -> None:
    ingredients = read_listing(
        write(tmp_path / "a.csv", INGREDIENTS, [f"1,1000,{BASE}/m/i1/step1000/", f"soup,2000,{BASE}/m/soup/step2000/"])
    )
    stages = read_listing(write(tmp_path / "b.csv", STAGES, stage_rows("stage1_pretraining", [0, 5], 0)))
    provenance = read_listing(write(tmp_path / "c.csv", PROVENANCE, ["wiki,https://olmo-data.org/part-0-0.csv.gz"]))

    assert list(ingredients.groups) == ["1", "soup"]
    assert [row.tokens for row in stages.rows] == [0, 500]
    assert [row.group for row in provenance.rows] == ["wiki"] and provenance.shape == "provenance"


@pytest.mark.parametrize(
    ("folder", "step"),
    [
        ("step11000-unsharded", 11000),
        ("ingredient1+2-step23842", 23842),
        ("step11921+11000+10000-nooptim-reshard32", None),
        ("laststep", None),
    ],
)
def test_an_address_says_its_step_only_where_it_ends_in_one(folder: str, step: int | None, tmp_path: Path) -> None:
    listing = read_listing(write(tmp_path / "a.csv", RUN, [f"7,{BASE}/m/x/{folder}/"]))

    assert listing.rows[0].step_of_address == step


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "line 1: the columns '' are of no official list"),
        (b"Step,Directory\n1,https://x\n", "line 1: the columns 'Step,Directory' are of no official list"),
        (RUN.encode() + b"\n", "lists nothing"),
        (RUN.encode() + b"\n\n1,https://x/step1/\n1\n", "line 4: 1 values for 2 columns"),
        (RUN.encode() + b"\n1,https://x,3\n", "line 2: 3 values for 2 columns"),
        (RUN.encode() + b"\n-1,https://x\n", "line 2: Step is '-1', which is no number"),
        (RUN.encode() + b"\n" + b"9" * 5000 + b",https://x\n", "line 2: Step is '99999"),
        (RUN.encode() + "\n١,https://x\n".encode(), "line 2: Step is '١', which is no number"),
        (RUN.encode() + b"\n1,file:///etc/passwd\n", "line 2: 'file:///etc/passwd' is no https address"),
        (RUN.encode() + b"\n1,https://x/\x1b[2J\n", "line 2 has control characters"),
        (RUN.encode() + b'\n1,"https://x/\n', "line 2: unexpected end of data"),
        (RUN.encode() + b'\n1,"https://x/\n/step1"\n', "line 3 has control characters"),
        (RUN.encode() + b"\n1,https://" + b"x" * 200_000, "line 2: field larger than field limit"),
        (b"\xff\xfe" + RUN.encode(), "is not UTF-8"),
        (STAGES.encode() + b"\nstage1,1,many,https://x\n", "line 2: Tokens Seen is 'many'"),
        (
            INGREDIENTS.encode() + b"".join(b"\n%d,1,https://x" % number for number in range(1001)),
            "names more than 1000 stages",
        ),
    ],
)
def test_what_is_no_list_is_refused_with_its_line(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.csv"
    path.write_bytes(content)

    with pytest.raises(CorruptFile, match=rf"bad.csv.*{re.escape(said)}"):
        read_listing(path)


def test_a_list_that_is_absurdly_large_or_absent_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "large.csv").open("wb") as file:
        file.truncate(17 * 2**20)

    with pytest.raises(UnsafeFile, match="more than any file of its kind"):
        read_listing(tmp_path / "large.csv")
    with pytest.raises(MissingFile, match="is not there"):
        read_listing(tmp_path / "none.csv")
    with pytest.raises(MissingFile, match="holds no official list"):
        read_listings(tmp_path / "nowhere")


# --- every kind of mistake, without the published lists ---------------------------------------------------------------


def test_a_sound_list_has_no_mistakes(tmp_path: Path) -> None:
    listing = read_listing(write(tmp_path / "tiny.csv", RUN, run_rows([0, 1000, 2000, 3000, 3500])))

    assert mistakes(listing, release={"": known(last_step=3500)}) == []


def test_rows_that_are_there_twice_are_told_as_ranges(tmp_path: Path) -> None:
    """A step between, off the grid, does not end a range."""
    steps = [0, 1000, 1000, 2000, 3000, 3000, 3500, 4000, 4000, 5000]
    found = mistakes(read_listing(write(tmp_path / "tiny.csv", RUN, run_rows(steps))))

    assert [(m.kind, m.lines, m.text) for m in found] == [
        ("duplicate_rows", (4, 7, 10), "3 of 10 rows are there twice: step 1000, 3000-4000")
    ]


def test_a_step_under_two_run_ids_is_found(tmp_path: Path) -> None:
    rows = run_rows([0, 1000, 2000]) + run_rows([2000, 3000], "tiny/xyz")
    (found,) = mistakes(read_listing(write(tmp_path / "tiny.csv", RUN, rows)))

    assert (found.kind, found.lines) == ("two_runs_one_step", (4, 5))
    assert found.text == "step 2000 is listed under 2 run ids: abc and xyz"


def test_a_row_whose_address_has_another_step_is_found(tmp_path: Path) -> None:
    rows = [f"3,1000,{BASE}/m/i3/step1000-unsharded/", f"3,1931,{BASE}/m/i3/step1000-unsharded/"]
    (found,) = mistakes(read_listing(write(tmp_path / "tiny.csv", INGREDIENTS, rows)))

    assert (found.kind, found.lines) == ("address_contradicts_step", (3,))
    assert found.text.startswith("ingredient 3: the row says step 1931, its address step 1000 (")


def test_the_last_step_must_be_listed(tmp_path: Path) -> None:
    listing = read_listing(write(tmp_path / "tiny.csv", RUN, run_rows([0, 1000, 2000])))

    (found,) = mistakes(listing, release={"": known(last_step=2646)})
    assert (found.kind, found.text) == (
        "missing_steps",
        "step 2646 is not listed: the last of tiny; the last here is 2000",
    )


def test_gaps_of_the_grid_are_found(tmp_path: Path) -> None:
    listing = read_listing(write(tmp_path / "tiny.csv", RUN, run_rows([0, 1000, 2000, 2500, 3000, 9000, 10000])))
    (found,) = mistakes(listing)

    assert (found.kind, found.text) == ("gap", "one gap wider than the 1000 steps between most: 3000-9000")
    assert off_grid_steps(listing, "") == [2500]


def test_the_widest_of_many_gaps_are_named(tmp_path: Path) -> None:
    steps = [block * 5000 + step for block in range(12) for step in (0, 1000, 2000)]
    (found,) = mistakes(read_listing(write(tmp_path / "tiny.csv", RUN, run_rows(steps))))

    assert found.text.startswith("11 gaps wider than the 1000 steps between most: 2000-5000, ")
    assert found.text.endswith(" and 3 narrower ones")


def test_a_list_with_the_rows_of_another_run_is_found(tmp_path: Path) -> None:
    own, other = run_rows(range(0, 20_000, 1000), "m/own"), run_rows(range(0, 20_000, 1000), "m/other")
    write(tmp_path / "OLMo-a.csv", RUN, own[:19])
    write(tmp_path / "removed-2000-01-01/OLMo-a.csv", RUN, other)
    write(tmp_path / "removed-2000-01-01/OLMo-b.csv", RUN, own)
    found = [m for m in mistakes_among(read_listings(tmp_path)) if m.kind == "list_of_another_run"]

    assert [(m.file, m.text) for m in found] == [
        (
            "OLMo-a.csv",
            "19 of the 20 rows of removed-2000-01-01/OLMo-b.csv are here, and none of the 20 of "
            "removed-2000-01-01/OLMo-a.csv: this is the list of OLMo-b",
        )
    ]


def test_lists_that_share_a_beginning_are_of_their_own_runs(tmp_path: Path) -> None:
    rows = run_rows(range(0, 20_000, 1000))
    write(tmp_path / "a.csv", RUN, rows)
    write(tmp_path / "removed-1/a.csv", RUN, run_rows([0, 1000, 2000], "m/x"))
    write(tmp_path / "removed-1/b.csv", RUN, rows[:15])

    assert "list_of_another_run" not in kinds(mistakes_among(read_listings(tmp_path)))


def test_alone_a_list_is_known_by_where_its_run_ended(tmp_path: Path) -> None:
    """The catalog knows olmo-7b-0724 by its own last step."""
    alone = read_listing(write(tmp_path / "OLMo-7B-0724.csv", RUN, run_rows([557000, 558000])))
    found = [m for m in mistakes(alone) if m.kind == "list_of_another_run"]

    assert [m.text for m in found] == [
        "it is called like olmo-7b-0724, which ended at step 651581; it lists olmo-7b, up to step 558000"
    ]


def test_a_stage_that_is_written_otherwise_is_found(tmp_path: Path) -> None:
    rows = stage_rows("stage1_pretraining", [0, 10], 0) + stage_rows("stage_2_longcontext", [10, 20], 1000)
    (found,) = mistakes(read_listing(write(tmp_path / "tiny.csv", STAGES, rows)))

    assert (found.kind, found.lines) == ("stage_name", (4, 5))
    assert found.text.startswith("2 rows are of 'stage_2_longcontext', which is not written as the others are")


def test_a_list_that_is_dated_otherwise_than_its_repository_is_found(tmp_path: Path) -> None:
    listing = read_listing(write(tmp_path / "Tiny-1025-32B.csv", RUN, run_rows([0])))

    (found,) = mistakes(listing, release={"": known(hub="org/tiny-1125-32B")})
    assert found.text == "the list's name says 1025, the repository that has its weights 1125 (org/tiny-1125-32B)"
    assert mistakes(listing, release={"": known(hub="org/tiny-1025-32B")}) == []


def test_files_that_the_configuration_has_or_lacks_are_found(tmp_path: Path) -> None:
    rows = [f"math,https://olmo-data.org/math/part-{number:02}-00000.csv.gz" for number in (0, 1, 15, 15)]
    listing = read_listing(write(tmp_path / "provenance.csv", PROVENANCE, rows))
    found = mistakes(listing, release={"": known(provenance_parts=["math 0-2"])})

    assert [(m.kind, m.lines) for m in found] == [
        ("duplicate_rows", (5,)),
        ("not_in_config", (5,)),
        ("missing_file", ()),
    ]
    assert "1 of 4 rows are there twice: math part-15-00000.csv.gz" in found[0].text
    assert "math part 2 is in the configuration, and not listed" in found[2].text


# --- Tokens Seen -----------------------------------------------------------------------------------------------------

ONE = stage_rows("stage1_pretraining", [0, 10, 20, 30], 0)


def token_mistakes(rows: Sequence[str], tmp_path: Path, **release: ReleasedRun) -> list[Mistake]:
    return mistakes(read_listing(write(tmp_path / "tiny.csv", STAGES, rows)), release=release)


def test_stages_that_count_on_are_sound(tmp_path: Path) -> None:
    assert token_mistakes(ONE + stage_rows("stage2_midtraining", [10, 20], 3000, 50), tmp_path) == []


def test_a_stage_whose_first_row_repeats_the_total_before_is_too_low(tmp_path: Path) -> None:
    rows = ONE + stage_rows("stage2_midtraining", [10, 20], 2500, 50)
    (found,) = token_mistakes(rows, tmp_path)

    assert (found.kind, found.lines) == ("tokens_low", (6, 7))
    assert (
        "too low by 10 steps of its own (500 tokens) in all 2 rows: the first, of step 10, repeats the 3,000"
        in found.text
    )


def test_a_stage_that_counts_from_another_step_than_was_loaded_is_found(tmp_path: Path) -> None:
    one = known("one", tokens_per_step=100, last_step=30)
    two = known("two", tokens_per_step=50, parent="one@20", last_step=20)
    rows = ONE + stage_rows("stage2_midtraining", [10, 20], 3000, 50)
    (found,) = token_mistakes(rows, tmp_path, stage1_pretraining=one, stage2_midtraining=two)

    assert found.kind == "wrong_base"
    assert found.text == (
        "stage2_midtraining: Tokens Seen counts on from step 30 of stage1_pretraining (3,000 tokens), and the stage "
        "was started from step 20 (2,000); step 10 should be 2,500"
    )


def test_where_stages_before_are_wrong_too_the_whole_of_it_is_told(tmp_path: Path) -> None:
    one = known("one", tokens_per_step=100, last_step=30)
    two = known("two", tokens_per_step=50, parent="one@30", last_step=20)
    three = known("three", tokens_per_step=100, parent="two@20", last_step=20)
    rows = ONE + stage_rows("stage2_a", [10, 20], 2500, 50) + stage_rows("stage3_b", [10, 20], 2500)
    low, lower = token_mistakes(rows, tmp_path, stage1_pretraining=one, stage2_a=two, stage3_b=three)

    assert low.text.endswith("repeats the 3,000 that stage1_pretraining ends with; step 10 should be 3,500")
    assert lower.text.endswith(
        "too low by 10 steps of its own (1,000 tokens) in all 2 rows: the first, of step 10, repeats the 3,500 that "
        "stage2_a ends with; all mistakes together, it is 1,500 too low: step 10 should be 5,000"
    )


def test_a_total_that_follows_from_nothing_is_found(tmp_path: Path) -> None:
    found = token_mistakes(ONE + stage_rows("stage2_midtraining", [10, 20], 7000, 50), tmp_path)

    assert [(m.kind, "counts from 7,000, where stage1_pretraining ends with 3,000" in m.text) for m in found] == [
        ("wrong_base", True)
    ]
    assert kinds(token_mistakes(stage_rows("stage1_pretraining", [0, 10, 20], 5), tmp_path)) == ["wrong_base"]


def test_a_row_out_of_line_is_found(tmp_path: Path) -> None:
    rows = [*ONE, f"stage1_pretraining,40,4001,{BASE}/m/stage1/step40/"]
    (found,) = token_mistakes(rows, tmp_path)

    assert (found.kind, found.lines) == ("tokens_jump", (6,))
    assert "is not 100 times the steps after the others, first at step 40" in found.text


def test_a_soup_that_adds_up_its_ingredients_is_found(tmp_path: Path) -> None:
    both = [
        *stage_rows("stage2_mid_ingredient1", [10, 20], 3000),
        *stage_rows("stage2_mid_ingredient2", [10, 20], 3000),
    ]
    sound = stage_rows("stage2_mid_souped", [20], 3000)
    added, low = stage_rows("stage2_mid_souped", [20], 5000), stage_rows("stage2_mid_souped", [20], 2000)
    after = stage_rows("stage3_long", [10, 20], 7000)

    assert token_mistakes(ONE + both + sound, tmp_path) == []
    assert kinds(token_mistakes(ONE + both + low, tmp_path)) == ["tokens_low"]
    (found,) = token_mistakes(ONE + both + added + after, tmp_path)
    assert (found.kind, found.text) == (
        "soup_adds_ingredients",
        "stage2_mid_souped: Tokens Seen adds up both ingredients: 7,000, where each has seen 5,000 by this list; "
        "stage3_long counts on from there",
    )


def test_runs_that_descend_from_each_other_do_not_hang_the_reader(tmp_path: Path) -> None:
    two = known("two", tokens_per_step=50, parent="three@20", last_step=20)
    three = known("three", tokens_per_step=50, parent="two@20", last_step=20)
    rows = ONE + stage_rows("stage2_a", [10, 20], 3000, 50) + stage_rows("stage3_b", [10, 20], 3500, 50)

    assert token_mistakes(rows, tmp_path, stage2_a=two, stage3_b=three)


# --- the published lists ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def listings() -> dict[str, Listing]:
    return {listing.name: listing for listing in read_listings(PUBLISHED)}


@pytest.fixture(scope="module")
def found(listings: dict[str, Listing]) -> list[Mistake]:
    return mistakes_among(list(listings.values()))


@published
@pytest.mark.parametrize(
    ("name", "rows", "unique"),
    [
        ("OLMo-2-0425-1B.csv", 195, 195),
        ("OLMo-2-0425-1B-stage2.csv", 72, 72),
        ("OLMo-2-1124-7B.csv", 935, 935),
        ("OLMo-2-1124-7B-stage2.csv", 36, 36),
        ("OLMo-2-1124-13B.csv", 690, 650),
        ("OLMo-2-1124-13B-stage2.csv", 72, 72),
        ("OLMo-7B-0724.csv", 564, 564),
        ("provenance.csv", 1119, 1117),
        ("removed-2024-11-26/OLMo-1B.csv", 351, 351),
        ("removed-2024-11-26/OLMo-7B.csv", 527, 527),
        ("removed-2024-11-26/OLMo-7B-Twin-2T.csv", 316, 316),
        ("removed-2024-11-26/OLMo-7B-0424.csv", 505, 505),
        ("removed-2024-11-26/OLMo-7B-0724.csv", 687, 687),
        ("OLMo-2-0325-32B.csv", 742, 741),
        ("OLMo-2-0325-32B-stage2.csv", 64, 64),
        ("OLMo-3-1025-7B.csv", 1475, 1475),
        ("OLMo-3-1025-32B.csv", 742, 742),
        ("OLMo-hybrid-0326-7B.csv", 1495, 1495),
    ],
)
def test_rows_are_counted(name: str, rows: int, unique: int, listings: dict[str, Listing]) -> None:
    assert len(listings) == 18
    assert (listings[name].num_rows, listings[name].num_unique) == (rows, unique)


@published
@pytest.mark.parametrize(
    ("name", "groups"),
    [
        ("OLMo-2-1124-13B-stage2.csv", {"1": 12, "2": 12, "3": 12, "4": 36}),
        ("OLMo-2-0325-32B-stage2.csv", {"1": 13, "2": 13, "3": 37, "soup": 1}),
        (
            "OLMo-3-1025-7B.csv",
            {"stage1_pretraining": 1415, "stage2_midtraining": 48, "stage_3_longcontext": 12},
        ),
        (
            "OLMo-3-1025-32B.csv",
            {
                "stage1_pretraining": 680,
                "stage2_midtraining_ingredient1": 24,
                "stage2_midtraining_ingredient2": 24,
                "stage2_midtraining_souped": 1,
                "stage3_longcontext": 12,
                "stage3_longcontext_souped": 1,
            },
        ),
        (
            "OLMo-hybrid-0326-7B.csv",
            {
                "stage1_pretraining": 1419,
                "stage2_midtraining_ingredient1": 25,
                "stage2_midtraining_ingredient2": 25,
                "stage2_midtraining_souped": 1,
                "stage3_longcontext": 25,
            },
        ),
    ],
)
def test_rows_of_stages_and_ingredients_are_counted(
    name: str, groups: dict[str, int], listings: dict[str, Listing]
) -> None:
    assert {group: len(rows) for group, rows in listings[name].groups.items()} == groups


@published
@pytest.mark.parametrize(
    ("file", "kind", "said"),
    [
        ("OLMo-2-0325-32B.csv", "duplicate_rows", r"^1 of 742 rows are there twice: step 200000$"),
        ("OLMo-2-1124-13B.csv", "duplicate_rows", r"^40 of 690 rows are there twice: step 239000, 477000-515000$"),
        (
            "OLMo-2-1124-13B-stage2.csv",
            "address_contradicts_step",
            r"^ingredient 3: .* step 11931, its address step 11000",
        ),
        ("OLMo-2-1124-7B.csv", "missing_steps", r"^step 928646 is not listed: .* olmo-2-7b-stage2-1, "),
        (
            "OLMo-7B-0724.csv",
            "list_of_another_run",
            r"^526 of the 527 rows of removed-2024-11-26/OLMo-7B.csv are here, ",
        ),
        ("OLMo-7B-0724.csv", "two_runs_one_step", r"^step 557000 is listed under 2 run ids: p067ktg9 and z4z0x4m9$"),
        ("OLMo-7B-0724.csv", "missing_steps", r"^step 558223 is not listed"),
        ("OLMo-7B-0724.csv", "gap", r"^4 gaps wider than the 1000 steps"),
        ("provenance.csv", "duplicate_rows", r"^2 of 1119 rows are there twice"),
        ("provenance.csv", "not_in_config", r"^open-web-math part 15 is listed, and"),
        ("provenance.csv", "missing_file", r"^algebraic-stack part 15 is in the configuration, and not listed$"),
        ("removed-2024-11-26/OLMo-1B.csv", "gap", r"117850-330000"),
        ("removed-2024-11-26/OLMo-7B-0424.csv", "address_contradicts_step", r"step 489000, its address step 12000"),
        ("removed-2024-11-26/OLMo-7B-Twin-2T.csv", "gap", r"89500-237000$"),
        ("OLMo-3-1025-7B.csv", "stage_name", r"^12 rows are of 'stage_3_longcontext'"),
        ("OLMo-3-1025-7B.csv", "tokens_low", r"^stage2_midtraining: .* low by 1000 steps .* be 5,932,062,867,456$"),
        (
            "OLMo-3-1025-7B.csv",
            "tokens_low",
            r"^stage_3_longcontext: .* low by 1000 steps .* 6,291,456,000 too low: .* be 6,034,160,615,424$",
        ),
        ("OLMo-3-1025-32B.csv", "tokens_low", r"^stage2_midtraining_ingredient1: .* low by 1000 steps"),
        ("OLMo-3-1025-32B.csv", "tokens_low", r"^stage2_midtraining_ingredient2: .* low by 1000 steps"),
        ("OLMo-3-1025-32B.csv", "tokens_low", r"^stage3_longcontext: .* low by 1000 steps .* be 5,611,316,051,968$"),
        ("OLMo-3-1025-32B.csv", "wrong_base", r"ingredient1: .* step 679000 .* from step 656000 .5,502,926,848,000"),
        ("OLMo-3-1025-32B.csv", "wrong_base", r"ingredient2: .* step 679000 .* from step 656000 .5,502,926,848,000"),
        ("OLMo-3-1025-32B.csv", "soup_adds_ingredients", r"adds up both ingredients: 5,887,477,415,936"),
        ("OLMo-3-1025-32B.csv", "naming", r"^the list's name says 1025, .* 1125 .allenai/Olmo-3-1125-32B.$"),
        ("OLMo-hybrid-0326-7B.csv", "soup_adds_ingredients", r"adds up both ingredients: 6,131,074,203,648"),
    ],
)
def test_every_mistake_that_is_known_is_found(file: str, kind: str, said: str, found: list[Mistake]) -> None:
    assert [m for m in found if (m.file, m.kind) == (file, kind) and re.search(said, m.text)]


@published
def test_nothing_else_is_called_a_mistake(found: list[Mistake]) -> None:
    """A list of mistakes is worth as much as it holds nothing else."""
    others = [(m.file.rpartition("/")[2], m.kind) for m in found if m.file.startswith("removed-")]

    assert len(found) == 29
    assert sorted(others) == [
        ("OLMo-1B.csv", "gap"),
        ("OLMo-7B-0424.csv", "address_contradicts_step"),
        ("OLMo-7B-0424.csv", "gap"),
        ("OLMo-7B-0724.csv", "gap"),
        ("OLMo-7B-Twin-2T.csv", "gap"),
        ("OLMo-7B.csv", "gap"),
        ("OLMo-7B.csv", "two_runs_one_step"),
    ]


@published
@pytest.mark.parametrize(
    ("name", "number", "some"),
    [
        ("OLMo-2-1124-13B.csv", 53, [93400, 100500, 133500, 464323, 489050, 596057]),
        ("OLMo-2-1124-7B.csv", 6, [150, 600, 700, 850, 900, 2150]),
        ("OLMo-7B-0724.csv", 31, [432410]),
        ("OLMo-2-0325-32B.csv", 19, [5001, 5471, 19731, 49141, 241991, 721901]),
        ("OLMo-2-0425-1B.csv", 4, [300, 23100, 66200, 1907359]),
    ],
)
def test_checkpoints_off_the_grid_are_counted(
    name: str, number: int, some: list[int], listings: dict[str, Listing]
) -> None:
    steps = off_grid_steps(listings[name], "")

    assert len(steps) == number
    assert set(some) <= set(steps)


@published
def test_the_catalog_counts_as_the_lists_do(listings: dict[str, Listing]) -> None:

    checked = 0
    for listing in listings.values():
        for group, run in releases_of(listing).items():
            if listing.shape != "provenance" and not listing.name.endswith("/OLMo-7B.csv"):
                assert len(listing.steps(group)) == run.value("num_checkpoints"), (listing.name, group)
                checked += 1
    assert checked == 37
