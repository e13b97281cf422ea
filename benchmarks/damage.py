"""Damage every file under output/, run the same commands again, and count what was handled.

    python benchmarks/damage.py --limit 40                  a quick look
    python benchmarks/damage.py --tracks classify lane      all files of two of the tracks

A tiny run of each track (classification; several labels an image; report, export and prediction of
photographs; lane, micro, distillation, plan) is made once, finished and stopped half way. Then one
file is deleted, emptied, halved, filled with zeros or noise, gets one bit flipped (in its head, its
tail, anywhere), or is replaced by the file of that name of another run or another fold, and the
track's commands are run again: of a finished track the last one alone half of the time, and then
all. Handled is: the results are bit-identical; or a command
refuses in one line, and when what it says is done (delete, run this again) the results are. A plan
depends on the clock, so its result is a valid submission of all members that had begun. Anything
else is printed, and the exit status says so.
"""

from __future__ import annotations

import argparse
import random
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.fingerprint import digest, fingerprint
from benchmarks.kill_resume import PRELOADED, WEIGHTS, Server, is_valid, make_weights
from benchmarks.tracks import EXPORT, MASK_TRACKS, MASKS, TOOLS, TRACKS

HARMS = ("delete", "empty", "half", "zeros", "noise")
HARMS += ("head", "bit", "bits", "tail", "other", "fold")
HEAD = 96  # bytes in which "head" flips a bit: magic numbers, lengths, shapes
SUBMISSION = "submission.csv"
MOST_REMEDIES = 4


def results(output: Path, patterns: tuple[str, ...] = ()) -> dict[str, str]:
    """Return file → hash of all that a user takes away, or of what ``patterns`` name."""
    wanted = patterns or {EXPORT}.union(*(track.last for track in TRACKS.values()))
    made = sorted(path for pattern in wanted for path in output.glob(pattern))
    found = {path.relative_to(output).as_posix(): digest(path.read_bytes()) for path in made}
    return found if patterns else found | fingerprint(output, states=False)


def members(output: Path) -> set[str]:
    """Return the finished folds below an output folder, trials left out."""
    return {
        path.parent.relative_to(output).as_posix()
        for path in output.rglob("finished.json")
        if "-trial" not in path.as_posix()
    }


def harm_file(path: Path, harm: str, other: Path, rng: random.Random) -> bool:
    """Damage one file; return whether that is possible."""
    content = path.read_bytes()
    size = len(content)
    if harm == "delete":
        path.unlink()
    elif harm in ("other", "fold"):
        if not other.is_file() or other.read_bytes() == content:
            return False
        shutil.copyfile(other, path)
    elif harm == "empty":
        path.write_bytes(b"")
    elif not size:
        return False
    elif harm in ("head", "bit", "bits", "tail"):
        flipped = bytearray(content)
        first = max(0, size - HEAD) if harm == "tail" else 0
        last = min(size, HEAD) if harm == "head" else size
        for _ in range(3 if harm == "bits" else 1):
            flipped[rng.randrange(first, last)] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
    else:
        half = content[: size // 2]
        path.write_bytes({"half": half, "zeros": bytes(size), "noise": rng.randbytes(size)}[harm])
    return True


@dataclass
class Bench:
    """A track's unharmed run, another run, and what became of the harm."""

    name: str
    folder: Path
    server: Server
    rng: random.Random
    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Make data and the two runs, and stop a third one half way."""
        self.track, self.data = TRACKS[self.name], self.folder / "data"
        self.track.make(self.data)
        make_weights(self.folder / WEIGHTS)
        self.output = self.folder / "output"  # every attempt has this path, which runs record
        self.states: dict[str, Path] = {}
        for state, seed in (("other", 1), ("finished", 0)):
            for command in self.track.commands(self.data, self.output, seed):
                said = self.run(command)
                assert not said, f"{command}: {said}"
            self.keep(state)
        whole = self.states["finished"]
        self.expected = [results(whole), results(whole, self.track.last)]
        self.stop_halfway()
        self.keep("stopped")

    def stop_halfway(self) -> None:
        """Kill the first command when it has something to go on from."""
        state = "last.pt" if self.name == "plan" else "last.previous.pt"
        for kill_at in range(14, 400, 6):
            self.server.attempt(self.commands[0], kill_at=kill_at)
            begun = self.name != "plan" or (self.output / "history.csv").exists()
            if begun and list(self.output.rglob(state)) and list(self.output.rglob("best.*")):
                return
            if self.name != "plan":
                shutil.rmtree(self.output)

    @property
    def commands(self) -> list[list[str]]:
        """The track's commands."""
        return self.track.commands(self.data, self.output, 0)

    def keep(self, state: str) -> None:
        """Move the output aside."""
        self.states[state] = self.folder / state
        shutil.move(self.output, self.states[state])

    def run(self, command: list[str]) -> str:
        """Run one script; return "" if it ended well, its refusal, or "FAULT: …"."""
        self.server.log.write_bytes(b"")
        try:
            ended = self.server.attempt(command, seconds=120)
        except RuntimeError:
            text = self.server.log.read_text(encoding="utf-8", errors="replace")
            errors = re.findall(r"(?m)^error: (.*)$", text)
            if "Traceback" in text or len(errors) != 1:
                return f"FAULT: {text.strip().splitlines()[-1][:200] if text.strip() else 'silent'}"
            return errors[0]
        return "" if ended else "FAULT: hangs"

    def obey(self, said: str) -> bool:
        """Do what a refusal asks for, but for running commands again; False if it names nothing."""
        named = said.removeprefix("--output ")
        path = Path(re.split(r"(?:: | is | has | was | and )", named)[0].strip())
        inside = self.output in path.parents
        if "folds.csv is made again" in said:
            (self.output / "folds.csv").unlink(missing_ok=True)
        elif re.search(r"delete (its|the run's|the) folder|delete \S+/fold\w+ ", said):
            found = re.search(r"delete (\S+/fold\w+) ", said)
            run = (
                Path(found[1])
                if found
                else next((p for p in (path, *path.parents) if p.name.startswith("fold")), path)
            )
            shutil.rmtree(run, ignore_errors=True)
        elif "delete it" in said and inside:
            path.unlink(missing_ok=True)
        elif "move it away" in said and inside:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        elif not re.search(r"again|run \w+\.py", said):
            return False
        return True

    def other(self, state: str, name: str, harm: str) -> Path:
        """Return the file that replaces another: of another run, or of another fold."""
        if harm == "other":
            return self.states["other"] / name
        swapped = re.sub(r"fold(0|1)(?=/)", lambda found: f"fold{1 - int(found[1])}", name)
        return self.states[state] / swapped

    def try_harm(self, state: str, name: str, harm: str) -> None:
        """Damage one file of a state, run everything, obey refusals, compare."""
        shutil.rmtree(self.output, ignore_errors=True)
        shutil.copytree(self.states[state], self.output)
        other = self.other(state, name, harm)
        if not harm_file(self.output / name, harm, other, self.rng):
            return
        hit = name.rpartition("/")[0]  # a plan may lack the time to train this fold again
        self.members = members(self.output) - {hit}
        heard: list[str] = []
        outcome = ""
        if state == "finished" and self.rng.random() < 0.5:
            outcome = self.follow(self.commands[-1:], heard, last=True)
        while not outcome and len(heard) <= MOST_REMEDIES:
            before = len(heard)
            outcome = self.follow(self.commands, heard)
            if len(heard) == before:
                break
        else:
            outcome = outcome or "NO END"
        self.counts[harm] += 1
        self.counts["wrong" if outcome else "remedied" if heard else "identical"] += 1
        if outcome:
            self.wrong.append(f"{self.name} {state} {name} {harm}: {outcome} | {' | '.join(heard)}")
            print(self.wrong[-1][:700], flush=True)

    def follow(self, commands: list[list[str]], heard: list[str], *, last: bool = False) -> str:
        """Run commands up to a refusal and obey it; return what is wrong, "" if nothing is.

        Args:
            commands: scripts and flags.
            heard: gets the refusal.
            last: compare what the last command makes, instead of everything.
        """
        said = next(filter(None, map(self.run, commands)), "")
        if not said:
            wrong = self.differences(last=last)
            return f"DIFFERENT{' at once' * last}: {', '.join(wrong)[:200]}" if wrong else ""
        heard.append(said)
        if said.startswith("FAULT"):
            return said
        return "" if self.obey(said) else f"NO WAY OUT {said}"

    def differences(self, *, last: bool = False) -> list[str]:
        """Return the names of results (of the last command alone) that harm has changed."""
        if self.name == "plan":
            gone = set() if last else self.members - members(self.output)
            valid = is_valid(self.output / SUBMISSION)
            return sorted(gone) + [SUBMISSION] * (not valid)
        expected, found = self.expected[last], results(self.output, self.track.last if last else ())
        names = expected.keys() | found.keys()
        return sorted(k for k in names if expected.get(k) != found.get(k))

    def cases(self) -> Iterator[tuple[str, str, str]]:
        """Yield (state, file, harm)."""
        for state in ("finished", "stopped"):
            root = self.states[state]
            for path in sorted(p for p in root.rglob("*") if p.is_file()):
                for harm in HARMS:
                    yield state, path.relative_to(root).as_posix(), harm


def main() -> int:
    """Parse the flags, do the harm, report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tracks", nargs="+", choices=TRACKS, default=list(TRACKS))
    parser.add_argument("--limit", type=int, default=0, help="damages a track, drawn; 0 = all")
    parser.add_argument("--minutes", type=float, default=0.0, help="of each track; 0 = no limit")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--only", default="", help="regular expression of files to damage")
    flags = parser.parse_args()
    wrong = 0
    for name in flags.tracks:
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            server = Server(Path(folder) / "log.txt")
            modules = (*PRELOADED, *(MASKS if name in MASK_TRACKS else TOOLS))
            server.context.set_forkserver_preload(list(modules))
            bench = Bench(name, Path(folder), server, random.Random(flags.seed))
            cases = [case for case in bench.cases() if re.search(flags.only, case[1])]
            bench.rng.shuffle(cases)
            with suppress(KeyboardInterrupt):  # what was done is counted
                for case in cases[: flags.limit or None]:
                    if flags.minutes and time.monotonic() - started > 60 * flags.minutes:
                        break
                    bench.try_harm(*case)
        done = sum(bench.counts[harm] for harm in HARMS)
        print(
            f"{name}: {done} damages of {len(cases)} cases in {time.monotonic() - started:.0f} s: "
            f"{bench.counts['identical']} identical, {bench.counts['remedied']} refused and "
            f"identical once the remedy was carried out, {len(bench.wrong)} not handled ("
            + ", ".join(f"{harm} {bench.counts[harm]}" for harm in HARMS)
            + ")",
            flush=True,
        )
        wrong += len(bench.wrong)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
