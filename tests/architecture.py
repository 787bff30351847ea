"""Draw docs/architecture.svg: the floors of the package, and two ways through it.

python -m tests.architecture > docs/architecture.svg
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape

from tests.imports import FLOORS, unit_graph

TITLES = {
    5: "command line",
    4: "stages",
    3: "training",
    2: "data, models",
    1: "arithmetic",
    0: "no torch",
}
"""Floor -> what is on it."""

UNITS: dict[str, tuple[float, float, str]] = {
    "commands": (0, 2.2, "generate, evaluate, merge"),
    "__main__": (0, 4.7, "python -m rlhf_cli"),
    "cli": (0, 5.85, "dispatch, exit codes"),
    "launch": (0, 7, "starts the ranks"),
    "stages": (1, 2.2, "one folder each"),
    "rewards": (2, 1.1, "scores of responses"),
    "train": (2, 2.2, "loop, optimizer, metrics"),
    "rollout": (2, 3.3, "generates responses"),
    "models": (3, 2.75, "loading by role"),
    "data": (3, 4.4, "files to batches"),
    "evaluation": (4, 0, "metrics with intervals"),
    "losses": (5, 1.1, "functions of tensors"),
    "logprobs": (4, 2.2, "log-probs of tokens"),
    "context": (4, 3.3, "device, precision, seed"),
    "progress": (4, 4.5, "progress bar"),
    "cache": (4, 5.95, "arrays on disk"),
    "kernels": (5, 2.2, "fused linear log-probs"),
    "distributed": (5, 3.85, "communication of ranks"),
    "watchdog": (5, 5.0, "dead, slow ranks"),
    "http_client": (5, 6.15, "requests over HTTP"),
    "preflight": (7, 4.3, "checks before torch"),
    "resolve": (7, 5.45, "composes and checks"),
    "sweep": (6, 6.6, "jobs of -m"),
    "diagnosis": (6, 3.15, "verdicts on runs"),
    "report": (6, 2, "pages about runs"),
    "memory": (6, 4.3, "estimates of memory"),
    "config": (8, 2, "recipes, overrides, help"),
    "configs": (8, 3.15, "all config classes"),
    "registry": (8, 4.3, "commands and stages"),
    "tools": (8, 0.85, "tools without keys"),
    "completion": (7, 0.85, "shell completion"),
    "runs": (8, 5.45, "run folders, locks"),
    "errors": (9, 2, "errors, exit codes"),
    "resources": (9, 3.15, "shipped files"),
    "torch_free": (9, 4.3, "commands without torch"),
    "console": (9, 5.45, "messages and tables"),
    "cores": (9, 6.6, "CPU cores, threads"),
}
"""Unit -> row and column of its box, and its purpose in three words at most."""

WAYS = {
    "The way of a row of data to the loss (rlhf sft)": (
        ("sources", "open files, choose rows", "data.sources.mixture:open_training_data"),
        ("records", "check and type each row", "data.records.reader:RecordReader"),
        ("tokens", "ids and loss mask", "data.tokens.record_tokenizer:RecordTokenizer"),
        ("examples", "flat arrays, cached", "data.examples:flatten"),
        ("batches", "steps of micro-batches", "data.loader:ExampleLoader"),
        ("model", "log-prob of each token", "models.policy:Policy"),
        ("loss", "one value per token", "losses.likelihood:nll_loss"),
        ("gradients", "micro-batches and ranks", "train.update:accumulate"),
        ("optimizer", "clip, then AdamW", "train.update:clip_and_step"),
        ("metrics", "a line in metrics.jsonl", "train.metrics:MetricsFile"),
    ),
    "The way of a prompt to a PPO update (rlhf ppo)": (
        ("prompts", "read and tokenize", "data.prompts:encode_prompts"),
        ("source", "choose prompts of a step", "stages.ppo.source:PPOSource"),
        ("rollout worker", "generates, scores", "stages.rollouts.worker:RolloutWorker"),
        ("generation", "sample tokens", "rollout.engine:generate"),
        ("reward", "score each response", "rewards.rewards:CombinedReward"),
        ("experience", "log-probs and values", "stages.ppo.experience:ExperienceMaker"),
        ("advantages", "KL, score, GAE", "stages.ppo.advantages:compute_advantages"),
        ("minibatches", "epochs over the rollout", "stages.ppo.updates:PPOUpdater"),
        ("PPO loss", "policy and value loss", "stages.ppo.loss:PPOLoss"),
        ("optimizer step", "clip, then AdamW", "train.update:clip_and_step"),
    ),
}
"""Title -> steps: name, what happens, and the `module:function` below `rlhf_cli` that does it."""

WIDTH, MARGIN = 1200, 16
LEFT, PITCH = 214.0, 128.0  # center of column 0, and from there to column 1
BOX_WIDTH, BOX_HEIGHT = 124.0, 44.0
TOP, ROW, FLOOR_GAP = 52.0, 80.0, 14.0
LANE = 9.0  # between two arrows that pass the same gap
STEP_WIDTH, STEP_HEIGHT, STEPS = 212.0, 66.0, 5

INK, GRAY, LINE = "#1f2933", "#52606d", "#7b8794"
FILL = {
    5: ("#fdf3e4", "#d99a2b"),
    4: ("#fdebe7", "#cf5c45"),
    3: ("#f8e9f3", "#b0508f"),
    2: ("#eeeafb", "#7458c4"),
    1: ("#e6f1fc", "#3d7fc1"),
    0: ("#e8f5ee", "#3a9468"),
}
"""Floor -> colors of its background, and of its frames and the arrows from it."""

Point = tuple[float, float]
Graph = Mapping[str, set[str]]


def picture() -> str:
    """The whole drawing."""
    parts, bottom = draw_floors(unit_graph())
    for title, steps in WAYS.items():
        parts += draw_way(title, steps, bottom + 44)
        bottom += 44 + 20 + 2 * STEP_HEIGHT + 30
    height = f"{bottom + MARGIN:.0f}"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}"'
            f' viewBox="0 0 {WIDTH} {height}" font-family="Helvetica, Arial, sans-serif">',
            "<title>Floors of rlhf_cli, and two ways through it</title>",
            "<defs>",
            *(tip(color) for color in (LINE, *(frame for _, frame in FILL.values()))),
            "</defs>",
            f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
            *parts,
            "</svg>",
        ]
    )


def draw_floors(graph: Graph) -> tuple[list[str], float]:
    """Floors with their boxes, the arrows between them, and the lower end of the drawing."""
    parts = [
        text(MARGIN, 30, "Floors: a module imports its own floor or a lower one", 17, bold=True)
    ]
    note = "An import that a chain of arrows implies has no arrow of its own."
    parts.append(text(WIDTH - MARGIN, 30, note, 12, GRAY, anchor="end"))
    for number, name in TITLES.items():
        rows = sorted({row_of(unit) for unit in UNITS if FLOORS[unit] == number})
        top, bottom = row_top(rows[0]) - 18, row_top(rows[-1]) + BOX_HEIGHT + 18
        color, frame = FILL[number]
        parts.append(rectangle(MARGIN, top, WIDTH - 2 * MARGIN, bottom - top, color, "none"))
        middle = (top + bottom) / 2
        parts.append(text(MARGIN + 14, middle + 9, str(number), 26, frame, bold=True))
        parts.append(text(MARGIN + 38, middle + 4, name, 13, frame, bold=True))
    parts += draw_arrows(graph)
    for unit, (_, _, purpose) in UNITS.items():
        x, y = center(unit)
        left, top = x - BOX_WIDTH / 2, y - BOX_HEIGHT / 2
        parts.append(rectangle(left, top, BOX_WIDTH, BOX_HEIGHT, "#ffffff", FILL[FLOORS[unit]][1]))
        parts.append(text(x, y - 3, unit, 13, bold=True, anchor="middle"))
        parts.append(text(x, y + 13, purpose, 10, GRAY, anchor="middle"))
    return parts, row_top(max(map(row_of, UNITS))) + BOX_HEIGHT + 18


def row_of(unit: str) -> int:
    """Row of a unit's box, from the top."""
    return int(UNITS[unit][0])


def row_top(row: int) -> float:
    """Upper end of the boxes of a row; there is a gap between two floors."""
    floors = {row_of(unit): FLOORS[unit] for unit in UNITS}
    return TOP + 18 + row * ROW + FLOOR_GAP * (max(floors.values()) - floors[row])


def center(unit: str) -> Point:
    """Center of a unit's box."""
    return LEFT + PITCH * UNITS[unit][1], row_top(row_of(unit)) + BOX_HEIGHT / 2


def draw_arrows(graph: Graph) -> list[str]:
    """Arrows of the transitive reduction; the shortest choose their way first."""
    taken: dict[int, list[float]] = {}
    found = sorted(reduction(graph), key=lambda tie: (row_of(tie[1]) - row_of(tie[0]), tie))
    ends = ports(found)
    return [draw_arrow(start, end, ends, taken) for start, end in found]


def reduction(graph: Graph) -> Iterator[tuple[str, str]]:
    """Imports that no chain of other imports implies."""

    def reached(start: str) -> set[str]:
        return graph[start].union(*(reached(end) for end in graph[start]))

    for start, found in graph.items():
        for end in sorted(found):
            if not any(end in reached(other) for other in found - {end}):
                yield start, end


def ports(found: list[tuple[str, str]]) -> dict[tuple[str, str, str], float]:
    """(unit, side, other unit) -> x at which the arrow between the two meets the box's side."""
    sides: dict[tuple[str, str], list[str]] = {}
    for start, end in found:
        if row_of(start) != row_of(end):
            sides.setdefault((start, "lower"), []).append(end)
            sides.setdefault((end, "upper"), []).append(start)
    places = {}
    for (unit, side), others in sides.items():
        others.sort(key=lambda other: center(other)[0])
        for number, other in enumerate(others):
            offset = (number - (len(others) - 1) / 2) * min(18, BOX_WIDTH * 0.8 / len(others))
            places[unit, side, other] = center(unit)[0] + offset
    return places


def draw_arrow(
    start: str,
    end: str,
    ends: Mapping[tuple[str, str, str], float],
    taken: dict[int, list[float]],
) -> str:
    """An arrow from one box to another, past the boxes of the rows between them."""
    first, last = row_of(start), row_of(end)
    color = FILL[FLOORS[start]][1]
    if first == last:
        (x, y), (to, _) = center(start), center(end)
        side = BOX_WIDTH / 2 if to > x else -BOX_WIDTH / 2
        return arrow(f"M{x + side:.1f},{y:.1f} L{to - side:.1f},{y:.1f}", color)
    x, to = ends[start, "lower", end], ends[end, "upper", start]
    y = row_top(first) + BOX_HEIGHT
    path = f"M{x:.1f},{y:.1f}"
    for row in range(first + 1, last):
        straight = x + (to - x) / (last - row + 1)
        lane = free_lane(row, straight, taken.setdefault(row, []))
        path += curve((x, y), (lane, row_top(row))) + f" V{row_top(row) + BOX_HEIGHT:.1f}"
        x, y = lane, row_top(row) + BOX_HEIGHT
    return arrow(path + curve((x, y), (to, row_top(last))), color)


def free_lane(row: int, wanted: float, taken: list[float]) -> float:
    """The x nearest to the wanted one that no box and no other arrow of the row covers."""
    boxes = [center(unit)[0] for unit in UNITS if row_of(unit) == row]

    def is_free(x: float) -> bool:
        clear = all(abs(x - box) >= BOX_WIDTH / 2 + 7 for box in boxes)
        return clear and all(abs(x - other) >= LANE - 3.1 for other in taken)

    lanes = [wanted + step * side for step in range(700) for side in (1, -1)]
    lane = next(x for x in lanes if LEFT - 70 < x < WIDTH - MARGIN - 4 and is_free(x))
    taken.append(lane)
    return lane


def curve(start: Point, end: Point) -> str:
    """A curve that begins and ends downwards."""
    middle = (start[1] + end[1]) / 2
    return f" C{start[0]:.1f},{middle:.1f} {end[0]:.1f},{middle:.1f} {end[0]:.1f},{end[1]:.1f}"


def arrow(path: str, color: str = LINE) -> str:
    """A path with a tip."""
    look = f'fill="none" stroke="{color}" stroke-width="1.4"'
    return f'<path d="{path}" {look} marker-end="url(#tip-{color[1:]})"/>'


def tip(color: str) -> str:
    """The tip of arrows of one color."""
    return (
        f'<marker id="tip-{color[1:]}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7"'
        f' markerHeight="7" orient="auto"><path d="M0,0.5 L8,4 L0,7.5 z" fill="{color}"/></marker>'
    )


def draw_way(title: str, steps: tuple[tuple[str, str, str], ...], top: float) -> list[str]:
    """Steps in two rows, from left to right."""
    parts = [text(MARGIN, top, title, 17, bold=True)]
    gap = (WIDTH - 2 * MARGIN - STEPS * STEP_WIDTH) / (STEPS - 1)
    for number, (name, what, function) in enumerate(steps):
        row, column = divmod(number, STEPS)
        left = MARGIN + column * (STEP_WIDTH + gap)
        y = top + 20 + row * (STEP_HEIGHT + 30)
        module, _, member = function.partition(":")
        color, frame = FILL[FLOORS[module.partition(".")[0]]]
        parts.append(rectangle(left, y, STEP_WIDTH, STEP_HEIGHT, color, frame))
        parts.append(text(left + 10, y + 19, name, 13, bold=True))
        parts.append(text(left + STEP_WIDTH - 10, y + 19, what, 10.5, GRAY, anchor="end"))
        parts.append(text(left + 10, y + 38, module, 10.5, mono=True))
        parts.append(text(left + 10, y + 54, member, 10.5, frame, mono=True, bold=True))
        if column < STEPS - 1:
            right, middle = left + STEP_WIDTH, y + STEP_HEIGHT / 2
            parts.append(arrow(f"M{right:.1f},{middle:.1f} h{gap - 1:.1f}"))
        elif row == 0:
            x, to = left + STEP_WIDTH / 2, MARGIN + STEP_WIDTH / 2
            parts.append(arrow(f"M{x:.1f},{y + STEP_HEIGHT:.1f} v15 H{to:.1f} v14"))
    return parts


def rectangle(x: float, y: float, width: float, height: float, fill: str, stroke: str) -> str:
    """A box with round corners."""
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="6"'
        f' fill="{fill}" stroke="{stroke}" stroke-width="1.2"/>'
    )


def text(
    x: float,
    y: float,
    words: str,
    size: float,
    color: str = INK,
    *,
    bold: bool = False,
    mono: bool = False,
    anchor: str = "start",
) -> str:
    """A line of text; `y` is its base line."""
    look = ' font-weight="bold"' if bold else ""
    look += ' font-family="Menlo, Consolas, monospace"' if mono else ""
    look += f' text-anchor="{anchor}"' if anchor != "start" else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size:g}" fill="{color}"{look}>'
        f"{escape(words)}</text>"
    )


if __name__ == "__main__":
    print(picture())
