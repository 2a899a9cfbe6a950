"""Compare the tests of two revisions, wherever their files have moved.

    python contrib/develop/test_ids.py OLD [NEW]      # two of git's; NEW is HEAD if it is left out

Prints how many tests each has, and every test function of which there are more or fewer cases than
before: gone, new, or renamed where a function of another name has much the same body. A case is
counted by its function and its parameters, so that a file may move. Run it before a commit that
moves or removes tests, and name in that commit's message what it calls gone. The exit status is 1
if a case is gone.

Needs the environment of ``make test``, which has to suit both revisions.
"""

import argparse
import ast
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import SequenceMatcher
from pathlib import Path

ROOT = Path(__file__).parents[2]
ALIKE = 0.6  # of a function's source

Cases = Counter[tuple[str, str]]  # function, parameters
Sources = dict[str, list[str]]


@contextmanager
def checked_out(revision: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        tree = Path(name) / "tree"
        git = ("git", "-C", str(ROOT), "worktree")
        subprocess.run((*git, "add", "--quiet", "--detach", str(tree), revision), check=True)
        try:
            yield tree
        finally:
            subprocess.run((*git, "remove", "--force", str(tree)), check=True)


def collected(tree: Path) -> Cases:
    command = (sys.executable, "-m", "pytest", "--collect-only", "--quiet")
    done = subprocess.run(
        (*command, "--loops", "asyncio,trio,uvloop"),
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    cases: Cases = Counter()
    for line in done.stdout.splitlines():
        if found := re.match(r"tests/\S+?\.py::(\w+(?:::\w+)?)(.*)", line):
            cases[found[1], steady(found[2], tree)] += 1
    return cases


def steady(parameters: str, tree: Path) -> str:
    """Without a clone's folder, and without the time in the head of what gzip has made."""
    parameters = parameters.replace(str(tree / "tests"), "tests").replace(str(tree), "")
    return re.sub(r"(\\x1f\\x8b\\x08\\x00).*?(\\x02|\\x04)\\xff", r"\1", parameters)


def sources(tree: Path) -> Sources:
    """The bodies of each test function; several files may have one of that name."""
    found: Sources = {}
    for path in tree.glob("tests/**/test_*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                found.setdefault(node.name, []).append(ast.unparse(node.body))  # type: ignore[arg-type]
    return found


def by_function(cases: Cases) -> Counter[str]:
    functions: Counter[str] = Counter()
    for (name, _), count in cases.items():
        functions[name] += count
    return functions


def successor(name: str, old: Sources, new: Sources, candidates: set[str]) -> str:
    """The candidate with the most similar source, "" if there is none."""
    best, found = ALIKE, ""
    for body in old.get(name, []):
        matcher = SequenceMatcher(b=body, autojunk=False)
        for candidate in candidates & new.keys():
            for other in new[candidate]:
                matcher.set_seq1(other)
                if matcher.quick_ratio() > best and matcher.ratio() > best:
                    best, found = matcher.ratio(), candidate
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare the tests of two revisions.")
    parser.add_argument("old")
    parser.add_argument("new", nargs="?", default="HEAD")
    options = parser.parse_args()
    with checked_out(options.old) as old_tree, checked_out(options.new) as new_tree:
        old, old_sources = collected(old_tree), sources(old_tree)
        new, new_sources = collected(new_tree), sources(new_tree)
    print(f"{options.old}: {old.total()} cases; {options.new}: {new.total()}")
    gone, fresh = by_function(old - new), by_function(new - old)
    lost = 0
    for name, count in sorted(gone.items()):
        heir = name
        if not fresh[name]:
            others = set(fresh - gone)
            heir = successor(name, old_sources, new_sources, others)
        have = fresh.pop(heir, 0)
        lost += max(0, count - have)
        text = f"{name} ({count})" + (f" -> {heir} ({have})" if have else "")
        print("gone:   " if have < count else "renamed:", text)
    for name, count in sorted(fresh.items()):
        print("new:    ", f"{name} ({count})")
    return int(lost > 0)


if __name__ == "__main__":
    sys.exit(main())
