"""What it saves to keep freed memory for the next step, on the CPU (`hfexp.core.machine`).

Whole processes in turns, each a bare training loop on ready batches of 16: the C library left as it is, and told to
keep what is freed.
"""

import json
import resource
import time

from benchmarks.harness import Report, child, interleave, parser, publish, ratio, turns

GIVEN_BACK, KEPT = "given back", "kept"
SIZES = {"digits": 200, "64 px": 60, "224 px": 8}
"""Steps to measure."""
WARM_UP = 5


def run(rounds: int | None = None, quick: bool = False) -> Report:
    """Measure both in turns."""
    report = Report("memory_reuse", (__doc__ or "").splitlines()[0].rstrip("."))
    rounds = 1 if quick else rounds or 5
    ways = {name: lambda name=name: measured(name, quick) for name in (GIVEN_BACK, KEPT)}
    found = interleave(ways, rounds)
    for size in found[KEPT][0]:
        steps = {name: [one[size][0] for one in many] for name, many in found.items()}
        report.section(f"Time per step, {size}, {turns(rounds)}", "ms", steps, [ratio(steps, KEPT, GIVEN_BACK)], ".1f")
        faults = {name: [one[size][1] for one in many] for name, many in found.items()}
        report.section(f"Page faults per step, {size}", "faults", faults, form=".0f")
    peak = {name: [one[list(one)[-1]][2] for one in many] for name, many in found.items()}
    report.section("Most memory in use, all sizes", "MB", peak, [ratio(peak, KEPT, GIVEN_BACK)], ".0f")
    return report


def measured(name: str, quick: bool) -> dict[str, tuple[float, float, float]]:
    """By size: milliseconds and page faults per step, and the peak of the process in MB so far."""
    return json.loads(child(["-m", "benchmarks.memory_reuse", "--way", name, *(["--quick"] if quick else [])]))


def train(way: str, quick: bool) -> dict[str, tuple[float, float, float]]:
    """The loops of one process."""
    import torch

    from benchmarks.steps import peak_memory
    from benchmarks.variants import Shape
    from hfexp.core.machine import keep_freed_memory

    if way == KEPT:
        keep_freed_memory()
    shapes = {"digits": Shape(8, 2, 64, 4, 4, 128), "64 px": Shape(64), "224 px": Shape(224)}
    found = {}
    for size, count in SIZES.items() if not quick else {"digits": 2}.items():
        model = shapes[size].build(10).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5, fused=True)
        pixel_values = torch.randn(16, 3, shapes[size].size, shapes[size].size)
        labels = torch.randint(0, 10, (16,))
        began, faults = 0.0, 0
        for step in range(WARM_UP + count):
            if step == WARM_UP:
                began, faults = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            model(pixel_values=pixel_values, labels=labels).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        seconds = time.perf_counter() - began
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
        found[size] = (1e3 * seconds / count, faults / count, peak_memory())
    return found


def main(argv: list[str] | None = None) -> None:
    """Run as a program."""
    options = parser(__doc__)
    options.add_argument("--way", choices=(GIVEN_BACK, KEPT), help="only print what one process measures")
    args = options.parse_args(argv)
    if args.way:
        print(json.dumps(train(args.way, args.quick)))
    else:
        publish(run(args.rounds, args.quick), keep=not args.quick)


if __name__ == "__main__":
    main()
