"""Mutation testing of the arithmetic and of the rules: how many small faults do the tests notice?

The faults are mutmut's own (`mutmut.mutation.mutators`). Its runner leaves out decorated functions, so every property
of `Components`, and constants of modules; this one takes them in. Every mutant runs in a fork of a process that has
imported what the tests need but nothing of gradvar, with the mutated source in place of the module's own; the tests
run in order of their duration, up to the first that fails.

    python scripts/mutation.py [module ...] [--again]

prints a table and the mutants that survive, and keeps the results in mutation.json.
"""

import argparse
import difflib
import importlib
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.machinery import PathFinder, SourceFileLoader
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

import libcst as cst
import pytest
from hypothesis import Phase, settings
from libcst.metadata import MetadataWrapper, PositionProvider
from mutmut.mutation.file_mutation import MutationVisitor, deep_replace
from mutmut.mutation.mutators import mutation_operators
from mutmut.mutation.pragma_handling import IgnoredCode

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "mutation.json"
# The tests that a module has to answer to, by file.
ARITHMETIC = [
    f"tests/decomposition/test_{name}.py" for name in ("components", "intervals", "accumulator", "allocation")
]
RULES = ["tests/persample/test_rules.py"]
TESTS = {
    "gradvar.decomposition.components": ARITHMETIC,
    "gradvar.decomposition.moments": [
        "tests/decomposition/test_accumulator.py",
        "tests/decomposition/test_components.py",
    ],
    "gradvar.decomposition.accumulator": [
        "tests/decomposition/test_accumulator.py",
        "tests/decomposition/test_components.py",
    ],
    "gradvar.decomposition.sketch": ["tests/decomposition/test_sketch.py", "tests/decomposition/test_accumulator.py"],
    "gradvar.decomposition.intervals": [
        "tests/decomposition/test_intervals.py",
        "tests/decomposition/test_components.py",
    ],
    "gradvar.persample.rules": RULES,
    "gradvar.persample.gram": ["tests/persample/test_gram.py"],
    "gradvar.decomposition.precision": ["tests/decomposition/test_precision.py"],
    "gradvar.decomposition.allocation": ["tests/decomposition/test_allocation.py"],
    "gradvar.decomposition.estimate": ["tests/decomposition/test_estimate.py", *ARITHMETIC[:1]],
    "gradvar.persample.functional": RULES,
}
MEMORY = 12 << 30  # bytes that a mutant may ask for
PASSED, FAILED, TIMEOUT, NOT_IMPORTED = 0, 1, 124, 125


@dataclass
class Mutant:
    """One fault: where it is, what it changes, and what became of it."""

    module: str
    line: int
    before: str
    after: str
    outcome: str = ""
    by: str = ""


class Visitor(MutationVisitor):
    """Mutmut's, which also enters functions that are decorated; the decorators themselves it leaves alone."""

    METADATA_DEPENDENCIES = MutationVisitor.METADATA_DEPENDENCIES

    def _skip_node_and_children(self, node: cst.CSTNode) -> bool:
        return not (isinstance(node, cst.FunctionDef) and node.decorators) and super()._skip_node_and_children(node)


def mutants_of(module: str) -> Iterator[tuple[Mutant, str]]:
    """Make the mutants of a module that compile.

    Yields:
        Each mutant with the module's source as it makes it.
    """
    source = (ROOT / module.replace(".", "/")).with_suffix(".py").read_text()
    wrapper = MetadataWrapper(cst.parse_module(source))
    visitor = Visitor(mutation_operators, IgnoredCode(set(), set(), set()))
    wrapper.visit(visitor)
    positions = wrapper.resolve(PositionProvider)
    for mutation in visitor.mutations:
        code = deep_replace(wrapper.module, mutation.original_node, mutation.mutated_node).code
        try:
            compile(code, module, "exec")
        except SyntaxError:
            continue
        changes = [d for d in difflib.ndiff(source.splitlines(), code.splitlines()) if d[0] in "-+"]
        before, after = (" ".join(d[2:].strip() for d in changes if d[0] == sign) for sign in "-+")
        yield Mutant(module, positions[mutation.original_node].start.line, before, after), code


class Loader(SourceFileLoader):
    """Gives a module another source than its file's."""

    def __init__(self, module: str, source: str) -> None:
        super().__init__(module, "")
        self.source, self.used = source, False

    def find_spec(self, name: str, path=None, target=None):
        """Take the place of the module's own loader (`sys.meta_path`)."""
        if name != self.name:
            return None
        spec = PathFinder.find_spec(name, path)
        self.path, spec.loader, self.used = spec.origin, self, True
        return spec

    def get_code(self, fullname: str):
        """Compile the source given."""
        return compile(self.source, self.path, "exec", dont_inherit=True)


class Plugin:
    """Orders the tests by duration, stops one that takes far too long, and reports and ends the process.

    Args:
        durations: Of the tests without a fault, by their names.
        writer: Where the report goes.
        loader: Of the mutated module.
    """

    def __init__(self, durations: dict[str, float], writer: int, loader: Loader) -> None:
        self.durations, self.writer, self.loader, self.taken = durations, writer, loader, {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Put the fastest first."""
        items.sort(key=lambda item: self.durations.get(item.nodeid, 0.0))

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Allow ten times what the test takes without a fault, and ten seconds."""
        signal.alarm(int(10 + 10 * self.durations.get(nodeid, 60.0)))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Add up durations; end at the first failure."""
        self.taken[report.nodeid] = self.taken.get(report.nodeid, 0.0) + report.duration
        if report.failed:
            self.end(FAILED, report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """End where a test file cannot even be imported."""
        if report.failed:
            self.end(FAILED, report.nodeid)

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        """End: all passed, unless there were none."""
        self.end(PASSED if exitstatus == 0 else FAILED, "")

    def end(self, code: int, failed: str) -> None:
        """Report what failed, what each test took, and the modules imported from elsewhere."""
        modules = [name for name in sys.modules if name.split(".")[0] not in ("gradvar", "tests", "__main__")]
        with os.fdopen(self.writer, "w") as pipe:
            json.dump({"failed": failed, "taken": self.taken, "modules": [] if self.durations else modules}, pipe)
        os._exit(code if self.loader.used else NOT_IMPORTED)


def run(module: str, source: str, durations: dict[str, float]) -> tuple[int, dict]:
    """Run the module's tests on another source of it in a fork; the exit code, and what the plugin saw."""
    reader, writer = os.pipe()
    child = os.fork()
    if child:
        os.close(writer)
        with os.fdopen(reader) as pipe:
            report = pipe.read()
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), json.loads(report or "{}")
    signal.signal(signal.SIGALRM, lambda *_: os._exit(TIMEOUT))
    signal.alarm(120)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    # The same examples every time, and no search for simpler ones that fail as well.
    settings.register_profile("mutation", derandomize=True, database=None, phases=[Phase.explicit, Phase.generate])
    settings.load_profile("mutation")
    loader = Loader(module, source)
    sys.meta_path.insert(0, loader)
    options = ["--tb=no", "--assert=plain", "-p", "no:cacheprovider", "-m", "not full"]
    pytest.main([*options, *TESTS[module]], [Plugin(durations, writer, loader)])
    os._exit(FAILED)  # pytest did not come to an end of its own


def baseline(module: str) -> dict[str, float]:
    """Run the tests on the module as it is; import what they need; return their durations."""
    code, seen = run(module, (ROOT / module.replace(".", "/")).with_suffix(".py").read_text(), {})
    if code != PASSED:
        raise SystemExit(f"the tests of {module} fail as it is: {seen.get('failed') or code}")
    for name in seen["modules"]:
        if name not in sys.modules:
            try:
                importlib.import_module(name)
            except Exception:  # parts that only their package can import; the fork will import them itself
                continue
    assert not any(name.split(".")[0] == "gradvar" for name in sys.modules)
    return seen["taken"]


def main() -> None:
    """Run the mutants of the modules asked for, and report on all that have been run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("modules", nargs="*", help="last parts of module names, such as components; by default all")
    parser.add_argument("--again", action="store_true", help="only those that survived before")
    options = parser.parse_args()
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    results = [Mutant(**m) for m in json.loads(RESULTS.read_text())] if RESULTS.exists() else []
    for module in TESTS:
        if options.modules and module.split(".")[-1] not in options.modules:
            continue
        start, durations = time.monotonic(), baseline(module)
        known = {(m.line, m.before, m.after): m for m in results if m.module == module}
        results = [m for m in results if m.module != module]
        for mutant, source in mutants_of(module):
            old = known.get((mutant.line, mutant.before, mutant.after))
            if options.again and old is not None and old.outcome != "survived":
                results.append(old)
                continue
            code, seen = run(module, source, durations)
            assert code != NOT_IMPORTED, "the tests do not import the mutated module"
            mutant.outcome = {PASSED: "survived", TIMEOUT: "timeout"}.get(code, "killed")
            mutant.by = seen.get("failed", "")
            results.append(mutant)
            if mutant.outcome != "killed":
                print(f"{mutant.outcome} {module}:{mutant.line}\n  - {mutant.before}\n  + {mutant.after}", flush=True)
        RESULTS.write_text(json.dumps([asdict(m) for m in results], indent=1))
        print(f"{module}: {time.monotonic() - start:.0f} s", flush=True)
    print_table(results)


def print_table(results: list[Mutant]) -> None:
    """Print the scores in Markdown."""
    print("| module | mutants | killed | timeout | survived | score |\n|---|---|---|---|---|---|")
    for name in [*TESTS, "total"]:
        outcomes = [m.outcome for m in results if name in (m.module, "total")]
        if outcomes:
            killed, timeout, survived = (outcomes.count(o) for o in ("killed", "timeout", "survived"))
            score = 100 * (killed + timeout) / len(outcomes)
            print(f"| {name} | {len(outcomes)} | {killed} | {timeout} | {survived} | {score:.1f} % |")


if __name__ == "__main__":
    main()
