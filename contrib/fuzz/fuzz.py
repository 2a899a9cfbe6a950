"""Fuzz the parsers with atheris, each for a while, against tests/support/parser_checks.py.

    python contrib/fuzz/fuzz.py [--seconds 60] [request-head chunks events edits response-head]

A failing input is kept in contrib/fuzz/finds, and should be added to tests/promises/test_fuzzed.py;
the exit status is 1 then.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent
FINDS = HERE / "finds"
LONGEST = 512  # bytes; short inputs reach every branch

sys.path.insert(0, str(HERE.parents[1] / "tests" / "support"))


def main() -> int:
    parser = argparse.ArgumentParser(description="Fuzz the parsers.")
    parser.add_argument("--seconds", type=int, default=60, help="for each")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    parser.add_argument("parsers", nargs="*", help="which; by default all")
    options = parser.parse_args()
    if find_spec("atheris") is None:
        parser.error("no atheris here: pip install -r contrib/fuzz/requirements.txt")
    if options.alone:
        fuzz(options.alone, options.seconds)
    from parser_checks import CHECKS

    unknown = set(options.parsers) - set(CHECKS)
    if unknown:
        parser.error(f"there are {', '.join(CHECKS)}")
    FINDS.mkdir(exist_ok=True)
    return max([run(name, options.seconds) for name in options.parsers or CHECKS])


def run(name: str, seconds: int) -> int:
    """Fuzz in a process of its own, because libFuzzer ends the one it runs in."""
    command = (sys.executable, __file__, "--alone", name, "--seconds", str(seconds))
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    ran = re.search(r"Done (\d+) runs? in (\d+) second", done.stderr)
    if done.returncode == 0 and ran is not None:
        print(f"{name:14} {int(ran[1]):>11,} executions in {ran[2]} s, nothing found", flush=True)
        return 0
    print(done.stderr[-4000:], file=sys.stderr)
    print(f"{name:14} FOUND something, see {FINDS}", flush=True)
    return 1


def fuzz(name: str, seconds: int) -> None:
    """Fuzz in this process; does not return."""
    import atheris

    with atheris.instrument_imports(include=["ape_cerebras", "parser_checks"]):
        from parser_checks import CHECKS, SEEDS
    check = CHECKS[name]

    def test_one(raw: bytes) -> None:
        if raw:
            check(1 + raw[0] % 64, raw[1:])

    with tempfile.TemporaryDirectory() as folder:
        corpus, words = Path(folder, "corpus"), Path(folder, "words")
        corpus.mkdir()
        for number, seed in enumerate(SEEDS[name]):
            (corpus / str(number)).write_bytes(bytes([7 * number]) + seed)
        words.write_text("".join(f'"{word}"\n' for word in words_of(SEEDS[name])))
        limits = (f"-max_total_time={seconds}", f"-max_len={LONGEST}", "-timeout=10")
        kept = (f"-dict={words}", f"-artifact_prefix={FINDS}/{name}-")
        atheris.Setup([sys.argv[0], *limits, *kept, str(corpus)], test_one)
        atheris.Fuzz()


def words_of(seeds: Iterable[bytes]) -> set[str]:
    """Words and separators, in libFuzzer's dictionary format."""
    found = {word for seed in seeds for word in re.findall(rb"\w+|\W+", seed)}
    return {"".join(f"\\x{byte:02x}" for byte in word) for word in found}


if __name__ == "__main__":
    sys.exit(main())
