"""Train a net of at most 10,000 parameters: python train_micro.py --data_dir input/micro.

Images with masks in, output/micro/<name>-<set>-seed<n>/fold<k>/ out, and a table of the scores.
One net a data set. The budget is checked before training, with a 21-class head. Without --data_dir
road scenes are generated. Started again, it goes on where it stopped; finished runs are skipped.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from src.engine.interrupt import stoppable
from src.mask_config import MicroConfig
from src.reader import parse
from src.runs import Output
from src.script import UserError, run_script

if TYPE_CHECKING:
    from src.pipelines.micro import Finished, MicroSet


@stoppable()
def main(argv: list[str]) -> int:
    """Train every run that ``argv`` asks for and print how they stand."""
    config = parse(
        MicroConfig, argv, prog="train_micro.py", description=__doc__ or "", row_by="model"
    )
    judged = [f"--{name}" for name in ("ablate", "report", "chain") if getattr(config, name)]
    if judged and config.fold == "full":
        raise UserError(f"{judged[0]} is judged on held-out images: name a --fold")
    if config.chain and (config.ablate or config.report or config.teacher):
        raise UserError("--chain goes without --ablate, --report and --teacher")
    if config.ablate and len(config.seeds) < 3:
        raise UserError("--ablate: a block's worth is within the seeds' noise; pass --seeds 0 1 2")
    output = Output(Path(config.output_dir)).track("micro")

    from src.pipelines.micro import check_protocol, find_sets

    check_protocol(config)
    (teach if config.chain else compete)(config, find_sets(config), output)
    return 0


def train_all(
    config: MicroConfig, sets: tuple[MicroSet, ...], name: str, output: Output
) -> dict[str, list[Finished]]:
    """Train one net on every set with every seed."""
    from src.pipelines.micro import train_run

    seeds = config.seeds or (config.seed,)
    return {
        where.name: [train_run(config, where, seed, name, output) for seed in seeds]
        for where in sets
    }


def compete(config: MicroConfig, sets: tuple[MicroSet, ...], output: Output) -> None:
    """Train the net; then without each of its blocks and with a report, if asked."""
    from src.pipelines.micro import check_size, score_table

    check_size(config, sets)
    name = config.name or config.model
    results = train_all(config, sets, name, output)
    print(f"\n{name}, {config.protocol} protocol\n{score_table(results)}", flush=True)
    if config.ablate:
        ablate(config, sets, name, output, results)
    if config.report:
        from src.pipelines.micro_report import write_report

        print(f"report: {write_report(config, sets, results, output.root / f'{name}-report.md')}")


def ablate(
    config: MicroConfig,
    sets: tuple[MicroSet, ...],
    name: str,
    output: Output,
    whole: dict[str, list[Finished]],
) -> None:
    """Train without each block in turn and print what it was worth."""
    from dataclasses import replace

    from src.models.micro.registry import MICRO_NETS
    from src.pipelines.micro import difference, score_table

    for block in MICRO_NETS[config.net or config.model].blocks:
        if block in config.drop:
            continue
        without = replace(config, drop=(*config.drop, block))
        results = train_all(without, sets, f"{name}-without-{block}", output)
        print(f"\n{name} without {block}\n{score_table(results)}")
        for where, runs in results.items():
            print(f"{where}, with {block} -> without: {difference(whole[where], runs)}", flush=True)


def teach(config: MicroConfig, sets: tuple[MicroSet, ...], output: Output) -> None:
    """Teach down the chain, then the last net by the first alone; a weak teacher is refused."""
    from dataclasses import replace

    from src.pipelines.micro import check_chain, check_size, difference, gate_sets, score_table

    nets = check_chain(config.chain)
    check_size(replace(config, model=nets[-1], net=""), sets)

    def train(net: str, teacher: str = "") -> tuple[str, dict[str, list[Finished]]]:
        own = replace(config, model=net, net="", teacher=teacher)
        name = f"{net}-by-{teacher}" if teacher else f"{config.name}{'-' * bool(config.name)}{net}"
        results = train_all(own, sets, name, output)
        print(f"\n{name}\n{score_table(results)}", flush=True)
        return name, results

    def hop(net: str, name: str, above: dict[str, list[Finished]]) -> dict[str, list[Finished]]:
        gate_sets(alone[net][1], above, name, force=config.allow_weak_teacher)
        _, taught = train(net, name)
        for where, runs in taught.items():
            gain = difference(alone[net][1][where], runs)
            print(f"{where}, {net} alone -> by {name}: {gain}", flush=True)
        return taught

    alone = {net: train(net) for net in nets}
    name, above = alone[nets[0]]
    for net in nets[1:]:
        above, name = hop(net, name, above), f"{net}-by-{name}"
    if len(nets) > 2:
        hop(nets[-1], *alone[nets[0]])  # one hop, to set beside the chain


if __name__ == "__main__":
    run_script(main, launched=True)
