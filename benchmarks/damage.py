"""Damage every file under output/, run the same commands again, and count what was handled.

    python benchmarks/damage.py --limit 40                  a quick look
    python benchmarks/damage.py --tracks classify lane      all files of two of the tracks

A tiny run of each track (classification, lane, micro, distillation, plan) is made once, finished
and stopped half way. Then one file is deleted, emptied, halved, filled with zeros or noise, gets
one bit flipped (in its head, its tail, anywhere), or is replaced by the file of that name of
another run or another fold, and the track's commands are run again: of a finished track the last
one alone half of the time, and then all. Handled is: the results are bit-identical; or a command
refuses in one line, and when what it says is done (delete, run this again) the results are. A plan
depends on the clock, so its result is a valid submission of all members that had begun. Anything
else is printed, and the exit status says so.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.fingerprint import digest, fingerprint
from benchmarks.kill_resume import (
    LEARNED,
    PRELOADED,
    WEIGHTS,
    Server,
    is_valid,
    make_competition,
    make_weights,
    plan_command,
)

HARMS = ("delete", "empty", "half", "zeros", "noise")
HARMS += ("head", "bit", "bits", "tail", "other", "fold")
HEAD = 96  # bytes in which "head" flips a bit: magic numbers, lengths, shapes
MASKS = (
    *("segmentation_models_pytorch", "src.pipelines.segmentation.train", "src.pipelines.micro"),
    *("src.pipelines.segmentation.ensemble", "src.pipelines.segmentation.report"),
    *("src.pipelines.distillation", "train_lane", "train_micro", "train_distill"),
    "infer_segmentation",
)
TINY = (
    "--config= --device cpu --autotune off --precision fp32 --num_workers 0 --warmup_epochs 0 "
    "--resolution 32x32 --ema_decay 0 --batch_size 4 --lr 2e-3 --checkpoint_minutes 0"
)
PROBED = "--head_start probe --norms frozen --head_lr_mult 1 --pretrained"
SUBMISSION = "submission.csv"
PLAN_S = 30.0
MORE_S = 6.0  # seconds that a plan gets when it is started again
LANE = (
    "--arch unet --encoder tu-test_resnet --pretrained none --decoder_width 16 --epochs 2 "
    "--name net --folds 2"
)
MICRO = "--dataset CFD --protocol free --name net --epochs 2"
DISTILL = (
    "--student tu-test_resnet --teacher tu-test_resnet --name trio --arch unet "
    "--student_pretrained none --teacher_pretrained none --student_width 16 --teacher_width 32 "
    "--loss ce --epochs 2 --allow_weak_teacher --tune 2"
)
MOST_REMEDIES = 4


@dataclass(frozen=True)
class Track:
    """One way from images to results.

    Attributes:
        commands: (data, output, seed) → scripts with their flags.
        make: writes the images.
    """

    commands: Callable[[Path, Path, int], list[list[str]]]
    make: Callable[[Path], None]


def classify(data: Path, output: Path, seed: int) -> list[list[str]]:
    """Two folds, blend, submission."""
    place = ["--data_dir", str(data), "--output_dir", str(output)]
    train = ["train_fold", *place, *LEARNED.split(), "--epochs", "2", "--seed", str(seed)]
    train += [*PROBED.split(), str(data.parent / WEIGHTS)]
    train += ["--num_workers", "0", "--device", "cpu", "--cache", "disk", "--config="]
    train += ["--checkpoint_minutes", "0"]
    infer = ["infer_ensemble", *place, "--num_workers", "0", "--device", "cpu"]
    blend = ["optimize_weights", *place, "--trials", "5", "--presets", ""]
    return [[*train, "--fold", "0"], [*train, "--fold", "1"], blend, infer]


def lane(data: Path, output: Path, seed: int) -> list[list[str]]:
    """Two folds and their blend's masks."""
    place = ["--data_dir", str(data), "--output_dir", str(output)]
    train = ["train_lane", *place, *TINY.split()]
    train += LANE.split()
    train += ["--seed", str(seed), "--cache", "disk"]
    runs = str(output / "lane" / "net" / "fold*")
    return [[*train, "--fold", "0"], [*train, "--fold", "1"], predict(output, runs)]


def micro(data: Path, output: Path, seed: int) -> list[list[str]]:
    """One net of few parameters."""
    train = ["train_micro", "--data_dir", str(data), "--output_dir", str(output), *MICRO.split()]
    train += [*TINY.replace("ema_decay", "ema_share").split(), "--seeds", str(seed)]
    return [train, predict(output, str(output / "micro" / "net-CFD*" / "fold*"))]


def distill(data: Path, output: Path, seed: int) -> list[list[str]]:
    """Student, teacher, a search of two trials, taught student."""
    train = ["train_distill", "--data_dir", str(data), "--output_dir", str(output), *TINY.split()]
    train += DISTILL.split()
    runs = str(output / "distill" / "trio-distilled" / "fold*")
    return [[*train, "--seed", str(seed)], predict(output, runs)]


def plan(data: Path, output: Path, seed: int) -> list[list[str]]:
    """Half a minute in; the hours are raised when it goes on."""
    spent, state = 0.0, output / "plan_state.json"
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        spent = float(json.loads(state.read_bytes())["spent_s"])
    seconds = max(PLAN_S, min(spent, 3 * PLAN_S) + MORE_S * bool(spent))
    return [plan_command(data, output, seconds=seconds, seed=seed)]


def predict(output: Path, runs: str) -> list[str]:
    """Return the command that predicts the test masks of some runs."""
    place = ["--output_dir", str(output), "--device", "cpu", "--num_workers", "0"]
    return ["infer_segmentation", "--runs", runs, *place]


def draw_masks(root: Path, *, num_classes: int = 2) -> None:
    """Bright bars are class 1, with more classes the top third is class 2."""
    import cv2
    import numpy as np

    rng = np.random.default_rng(0)
    for split, names in (("train", "abcdefgh"), ("val", "ijk"), ("test", "lm")):
        for name in names:
            image = rng.integers(0, 60, (40, 48, 3), np.uint8)
            mask = np.zeros((40, 48), np.uint8)
            left = int(rng.integers(4, 36))
            mask[:, left : left + 8] = 1
            image[mask == 1] += 150
            if num_classes > 2:
                mask[:12], image[:12, :, 0] = 2, 255
            for kind, pixels in (("images", image), ("masks", mask)):
                (root / split / kind).mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(root / split / kind / f"{name}.png"), pixels)


TRACKS = {
    "classify": Track(classify, make_competition),
    "lane": Track(lane, draw_masks),
    "micro": Track(micro, lambda root: draw_masks(root / "CFD")),
    "distill": Track(distill, lambda root: draw_masks(root, num_classes=3)),
    "plan": Track(plan, make_competition),
}


def results(output: Path, *, last: bool = False) -> dict[str, str]:
    """Return file → hash of all that a user takes away, or of what the last command makes."""
    paths = [output / SUBMISSION, *sorted((output / "masks").rglob("*"))]
    made = [p for p in paths if p.suffix == ".png" or p.name in (SUBMISSION, "masks.csv")]
    found = {p.relative_to(output).as_posix(): digest(p.read_bytes()) for p in made if p.exists()}
    return found if last else found | fingerprint(output, states=False)


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
        self.expected = [results(whole), results(whole, last=True)]
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
        path = Path(re.split(r"(?:: | is | has | was | and )", said)[0].strip())
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
        expected, found = self.expected[last], results(self.output, last=last)
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
            modules = PRELOADED if name == "classify" else (*PRELOADED, *MASKS)
            server.context.set_forkserver_preload(list(modules))
            bench = Bench(name, Path(folder), server, random.Random(flags.seed))
            cases = [case for case in bench.cases() if re.search(flags.only, case[1])]
            bench.rng.shuffle(cases)
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
