"""The documentation is run: its examples, the output it shows, its links, and what it says of options and fields.

A page's blocks run in order, in a folder of their own in which `models` is the repository's:

    ```sh run              lines that begin with `actx`; they must exit with 0
    ```sh run exit=3       the last one must exit with 3
    ```python run          a script
    ```python file=NAME    a file that later blocks use

A block ```text behind one of the first three, or a table, is what it must have printed. A page with a comment
`<!-- after: PAGE -->` runs in a copy of that page's folder.

`python tests/test_docs.py [PAGE ...]` writes anew what no longer agrees, and on the pages named also the times;
`python tests/activations_page.py` the table and the drawings of the activations.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import re
import shlex
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import typer

from actx.cli.main import app, run
from actx.cli.options import METRICS
from actx.custom_ops import ACTIVATIONS
from actx.exporter import load
from actx.exporter.errors import ActxError
from actx.exporter.fitting.registry import FAMILIES
from actx.exporter.manifest import Manifest
from actx.exporter.targets import TARGETS
from actx.models.demo import ARCHIVE, DATA_FOLDER, demo_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import onnx_ir as ir

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGES = sorted(page.name for page in DOCS.glob("*.md"))
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
DRAWING = "gelu-pwl16.svg"

FENCE = re.compile(r"^```(?P<info>[^\n]*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
PRINTED = re.compile(r"^```text\n.*?^```$", re.MULTILINE | re.DOTALL)
TABLE = re.compile(r"\s*(?P<body>(?:^\|[^\n]*\n)+)", re.MULTILINE)
AFTER = re.compile(r"<!-- after: (\S+) -->")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?(?![\w.])")
# Machines round differently in their last bits; what is shown is the same to this.
TOLERANCE = 0.01
OF_THE_MACHINE = (
    "Note: other processes kept",
    "Note: the CPU governor is",
    "Note: it is faster without ONNX Runtime's",
)  # left out: they come and go
ALWAYS = frozenset({"--help", "--version", "--install-completion", "--show-completion"})
OF_OTHERS = frozenset(
    {
        *("--first", "--guided", "--seconds"),  # python -m tests.fuzz
        *("--arch", "--isa"),  # python -m actx.custom_ops.cpu.build
        *("--activation", "--epochs", "--ffn", "--norm"),  # python -m actx.models.train
        *("--dynamic", "--forms", "--networks", "--nodes", "--olive", "--only", "--optimum"),  # the benchmarks
        *("--parameters", "--precision", "--rounds", "--verbs"),
        *("--save-inputs", "--load-outputs"),  # polygraphy run
        "--slow",  # pytest
        "--system-site-packages",  # python -m venv
    }
)


@dataclass(frozen=True)
class Step:
    """A block that is run: `info` as above, `expected` the span of what it prints in the page's text, if shown."""

    info: str
    body: str
    expected: tuple[int, int] | None


def steps_of(text: str) -> Iterator[Step]:
    fences = list(FENCE.finditer(text))
    for fence, following in zip(fences, [*fences[1:], None], strict=False):
        if not re.search(r" (run|file=)", fence["info"]):
            continue
        expected = None
        if following is not None and following["info"] == "text" and not text[fence.end() : following.start()].strip():
            expected = following.span("body")
        elif table := TABLE.match(text, fence.end()):
            expected = table.span("body")
        yield Step(fence["info"], fence["body"], expected)


# --- running ---


def execute(step: Step) -> str:
    """Run a block in the current directory and return what it prints; raise where it exits with another code."""
    if "file=" in step.info:
        Path(step.info.partition("file=")[2]).write_text(step.body, encoding="utf-8")
        return ""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        if step.info.startswith("python"):
            exec(compile(step.body, "example", "exec"), {"__name__": "__main__"})
            codes = [0]
        else:
            codes = [_command(line) for line in step.body.replace("\\\n", " ").splitlines()]
    wanted = int(step.info.partition("exit=")[2] or 0)
    assert codes == [*[0] * (len(codes) - 1), wanted], f"{step.body}exited with {codes}:\n{printed.getvalue()}"
    text = printed.getvalue().replace(str(DATA_FOLDER), "models/data").replace(f"{Path.cwd()}/", "")
    lines = (line.rstrip() for line in text.strip("\n").splitlines())
    return "".join(f"{line}\n" for line in lines if not line.startswith(OF_THE_MACHINE))


def _command(line: str) -> int:
    before, sys.argv = sys.argv, shlex.split(line)
    try:
        assert sys.argv[0] == "actx", line
        return run()
    finally:
        sys.argv = before


class Runner:
    """Runs every page once, and keeps its folder for the pages that come after it."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._printed: dict[str, list[tuple[Step, str]]] = {}

    def page(self, name: str) -> list[tuple[Step, str]]:
        if name not in self._printed:
            self._printed[name] = self._run(name)
        return self._printed[name]

    def folder(self, name: str) -> Path:
        return self._root / name

    def _run(self, name: str) -> list[tuple[Step, str]]:
        text = (DOCS / name).read_text(encoding="utf-8")
        shutil.rmtree(self.folder(name), ignore_errors=True)  # of a run that failed
        if before := AFTER.search(text):
            self.page(before[1])
            shutil.copytree(self.folder(before[1]), self.folder(name), symlinks=True)
        else:
            self.folder(name).mkdir()
            (self.folder(name) / "models").symlink_to(DOCS.parent / "models")
        with contextlib.chdir(self.folder(name)):
            return [(step, execute(step)) for step in steps_of(text)]


def converted_once(convert: Callable[..., ir.Model]) -> Callable[..., ir.Model]:
    """Return `convert`, which converts the demonstration's program the first time only: nearly every page has it."""
    demo, known = demo_path(ARCHIVE).resolve(), []

    def converted(path: Path, *arguments: Any) -> ir.Model:
        if path.resolve() != demo:
            return convert(path, *arguments)
        if not known:
            known.append(convert(path, *arguments))
        return known[0].clone()

    return converted


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("COLUMNS", "FORCE_COLOR", "TTY_COMPATIBLE", "ACTX_DEBUG"):  # what a user's terminal may set
            patch.delenv(name, raising=False)
        patch.setattr(load, "to_onnx", converted_once(load.to_onnx))
        yield Runner(tmp_path_factory.mktemp("docs"))


# --- comparing ---


def comparable(text: str) -> list[str]:
    """Lines without what differs from run to run: times, shares of latency, the verdict, and which of equal peaks is first."""
    lines, timed = [], False
    for line in text.splitlines():
        timed = (timed or line.startswith("Latency of")) and not line.startswith("latency:")
        masked = re.sub(r"latency: .*?, ratio", "latency: VERDICT, ratio", line)
        masked = re.sub(r"(?<= over )\d+ runs in \d+", "#", masked)
        masked = re.sub(r"[\d.]+%$|[\d.]+%(?= of latency)|(?<=at x = )\S+?(?=,|$)|[\d.]+(?= ms)", "#", masked)
        if timed or line.startswith(("latency:", "mish: hinges", "gelu: hinges")):
            masked = re.sub(r"(?<![\w.])\d+\.\d+%?", "#", masked)
        lines.append(re.sub(r"\s+", " ", masked).strip())
    return lines


def differences(expected: str, got: str) -> list[str]:
    ours, theirs = comparable(expected), comparable(got)
    if len(ours) != len(theirs):
        return [f"{len(ours)} lines are shown, {len(theirs)} were printed:\n{got}"]
    return [f"shown:   {a}\nprinted: {b}" for a, b in zip(ours, theirs, strict=True) if not _same(a, b)]


def _same(a: str, b: str) -> bool:
    numbers = [NUMBER.findall(line) for line in (a, b)]
    if NUMBER.sub("#", a) != NUMBER.sub("#", b) or len(numbers[0]) != len(numbers[1]):
        return False
    return all(
        math.isclose(float(x), float(y), rel_tol=TOLERANCE, abs_tol=max(1e-9, _last_place(x)))
        for x, y in zip(*numbers, strict=True)
    )


def _last_place(number: str) -> float:
    """One unit of the last digit of a number in scientific notation: machines round to either side."""
    mantissa, _, exponent = number.partition("e")
    return 1.001 * 10.0 ** (int(exponent) - len(mantissa.partition(".")[2])) if exponent else 0.0


@pytest.mark.parametrize("page", PAGES)
def test_examples_print_what_the_page_shows(page: str, runner: Runner) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    for step, printed in runner.page(page):
        if step.expected is not None:
            shown = text[slice(*step.expected)]
            assert not differences(shown, printed), "\n".join([step.body, *differences(shown, printed)])


def test_the_error_table_is_that_of_fresh_fits(runner: Runner) -> None:
    text = (DOCS / "mathematics.md").read_text(encoding="utf-8")
    tables = [
        (text[slice(*step.expected)], printed)
        for step, printed in runner.page("mathematics.md")
        if step.expected is not None and text[step.expected[0]] == "|"
    ]
    assert len(tables) == 2, "one of errors and one of the law's constants"
    for shown, printed in tables:
        assert shown == printed


def test_the_drawing_is_that_of_a_fresh_fit(runner: Runner) -> None:
    runner.page("fit.md")
    fresh, shown = (
        # Knots and ticks: a curve has other points when the last bits of a fit differ.
        [float(n) for n in re.findall(r'<use [^>]*?\b[xy]="([^"]*)"', file.read_text(encoding="utf-8"))]
        for file in (runner.folder("fit.md") / DRAWING, DOCS / DRAWING)
    )
    assert len(shown) > 15
    assert shown == pytest.approx(fresh, abs=0.5)


def test_the_table_of_activations_is_that_of_the_catalogue() -> None:
    from tests import activations_page  # noqa: PLC0415 - this file is a script too

    text = activations_page.PAGE.read_text(encoding="utf-8")
    found = activations_page.TABLE.search(text)
    assert found is not None
    shown = dict(zip(re.findall(r"^\| `(\w+)`", found[0], re.MULTILINE), found[0].splitlines(), strict=True))
    assert list(shown) == list(ACTIVATIONS)
    assert sorted(file.stem for file in activations_page.DRAWINGS.iterdir()) == sorted(ACTIVATIONS)
    for name in ("gelu", "relu2", "leaky_relu", "xielu", "exp", "apl"):  # of every kind one; all take half a minute
        entry = activations_page.entry(name)
        assert not differences(f"{shown[name]}\n", activations_page.row(entry))
        drawn, fresh = (
            [float(n) for points in re.findall(r'points="([^"]*)"', svg) for n in re.split("[ ,]", points)]
            for svg in ((activations_page.DRAWINGS / f"{name}.svg").read_text("utf-8"), activations_page.drawing(entry))
        )
        assert drawn == pytest.approx(fresh, abs=1)


def test_every_row_of_the_catalogue_has_a_formula_and_a_source() -> None:
    assert [entry.name for entry in ACTIVATIONS.values() if not (entry.text and entry.source)] == []


def test_the_benchmark_of_the_demo_is_what_its_page_shows() -> None:
    (row,) = re.findall(r"^\| the demo's .*$", (DOCS / "benchmarks.md").read_text(encoding="utf-8"), re.MULTILINE)
    shown = (DOCS / "demo.md").read_text(encoding="utf-8")
    _, _, before, after, ratio, _, _ = (cell.strip() for cell in row.split("|"))
    medians = [float(value) for value in re.findall(r"^(?:original|artifact) +\S+ +(\S+)", shown, re.MULTILINE)]
    assert [f"{median:.2f} ms" for median in medians[:2]] == [before, after]
    assert set(NUMBER.findall(ratio.replace("95 % interval ", ""))) <= set(NUMBER.findall(shown))


# --- links ---


def anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for link in LINK.findall(FENCE.sub("", (DOCS / page).read_text(encoding="utf-8"))):
        file, _, anchor = link.partition("#")
        target = DOCS / (file or page)
        assert target.is_file(), f"{page}: {link}"
        assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), f"{page}: {link}"


def test_the_index_lists_every_page() -> None:
    index = (DOCS / "README.md").read_text(encoding="utf-8")
    assert {link.partition("#")[0] for link in LINK.findall(index)} >= set(PAGES) - {"README.md"}


# --- what the pages must describe ---


def rows(page: str) -> dict[str, str]:
    """Return the rows of a page's tables by what stands in their first cell."""
    lines = re.findall(r"^\| *(.*?) *\|(.*)\|$", (DOCS / page).read_text(encoding="utf-8"), re.MULTILINE)
    found: dict[str, str] = {}
    for first, rest in lines:
        for name in re.findall(r"`([^`]+)`", first):
            found.setdefault(name.split(" ")[0], rest)
    return found


def options_of(verb: str) -> set[str]:
    return {name for parameter in COMMANDS[verb].params for name in (*parameter.opts, *parameter.secondary_opts)}


@pytest.mark.parametrize("verb", COMMANDS)
def test_every_argument_and_option_is_described_with_its_default(verb: str) -> None:
    described = rows(f"{verb}.md")
    for parameter in COMMANDS[verb].params:
        names = [*parameter.opts, *parameter.secondary_opts]
        if "--help" in names:
            continue
        if parameter.param_type_name == "argument":
            names = [parameter.metavar]
        for name in names:
            assert name in described, f"{verb}.md says nothing of {name}"
        default = parameter.default
        if isinstance(default, (str, int, Path)) and not isinstance(default, bool) and not parameter.required:
            assert f"`{default}`" in described[names[0]], f"{verb}.md: {names[0]} is {default} by default"
        elif default is True:
            assert "the default" in described[names[0]]


@pytest.mark.parametrize("page", PAGES)
def test_no_option_is_named_that_does_not_exist(page: str) -> None:
    text = PRINTED.sub("", (DOCS / page).read_text(encoding="utf-8"))
    known = ALWAYS.union(OF_OTHERS, *(options_of(verb) for verb in COMMANDS))
    assert set(OPTION.findall(text)) <= known
    for verb, arguments in re.findall(r"\bactx ([a-z]+)((?:[^\n`\\]|\\\n)*)", text):
        if verb in COMMANDS:
            assert set(OPTION.findall(arguments)) <= options_of(verb), f"{page}: actx {verb}{arguments}"


def test_every_command_shown_has_a_verb_that_exists() -> None:
    for page in PAGES:
        for fence in FENCE.finditer((DOCS / page).read_text(encoding="utf-8")):
            if fence["info"].startswith("sh"):
                assert set(re.findall(r"^actx ([a-z]+)", fence["body"], re.MULTILINE)) <= set(COMMANDS), page


def test_every_field_of_the_manifest_is_described() -> None:
    described = rows("bundle.md")

    def check(prefix: str, model: Any) -> None:
        for name, field in model.model_fields.items():
            assert f"{prefix}{name}" in described, f"bundle.md says nothing of {prefix}{name}"
            for inner in (field.annotation, *getattr(field.annotation, "__args__", ())):
                if hasattr(inner, "model_fields"):
                    check(f"{prefix}{name}.", inner)

    check("", Manifest)


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("mathematics.md", sorted(FAMILIES)),
        ("mathematics.md", METRICS),
        ("adding-an-activation.md", sorted(ACTIVATIONS)),
        ("export.md", sorted(TARGETS)),
        ("adding-a-target.md", sorted(TARGETS)),
        ("bundle.md", ["model.onnx", "weights.data", "manifest.json"]),
    ],
)
def test_names_are_given(page: str, names: list[str]) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    assert [name for name in names if f"`{name}`" not in text and f"`{name}:" not in text] == []


def test_every_exit_code_is_described() -> None:
    described = rows("README.md")
    codes = {0, ActxError.exit_code, *(kind.exit_code for kind in ActxError.__subclasses__())}
    assert {str(code) for code in codes} <= set(described)


@pytest.mark.parametrize("page", PAGES)
def test_pages_quote_no_machine(page: str) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    assert not re.search(r"(?<![\w.~])/(home|root|tmp|usr|work|opt|var)/", text)


# --- writing the pages anew ---


def _rewrite(root: Path) -> None:
    runner = Runner(root)
    for page in PAGES:
        results, file = runner.page(page), DOCS / page
        text = file.read_text(encoding="utf-8")
        for step, printed in reversed(results):
            if step.expected is not None and (page in sys.argv or differences(text[slice(*step.expected)], printed)):
                text = text[: step.expected[0]] + printed + text[step.expected[1] :]
        file.write_text(text, encoding="utf-8")
    shutil.copy(runner.folder("fit.md") / DRAWING, DOCS / DRAWING)


if __name__ == "__main__":
    os.environ.pop("COLUMNS", None)
    with tempfile.TemporaryDirectory() as folder:
        _rewrite(Path(folder))
