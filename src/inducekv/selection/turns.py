"""Tasks taking turns: how a memory's bytes are shared where nothing says which task needs them more."""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence


def take_turns(queues: Mapping[str, Iterable[int]], costs: Sequence[int | float], total: int | float) -> list[int]:
    """Entries in the order in which they are added: at each turn the task that has spent least adds its next.

    Args:
        queues: each task's entries in the order in which it wants them.
        costs: bytes each entry would take.
        total: bytes there are; an entry that no longer fits is passed over.
    """
    waiting = {task: deque(queue) for task, queue in queues.items()}
    left, chosen = total, []
    spent: dict[str, int | float] = dict.fromkeys(waiting, 0)
    while any(waiting.values()):
        task = min((name for name, queue in waiting.items() if queue), key=lambda name: spent[name])
        index = waiting[task].popleft()
        if costs[index] <= left:
            chosen.append(index)
            left -= costs[index]
            spent[task] += costs[index]
    return chosen
