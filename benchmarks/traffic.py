"""Record the collectives that a process takes part in.

Annotations are evaluated here, because DDP checks those of a communication hook.
"""

from collections import Counter
from typing import Any

import torch
import torch.distributed as dist

from fingerprint_accel.losses.exchange import rank_and_world_size


class Traffic:
    """Collectives of this process, in order.

    Calls of `torch.distributed.all_gather` and `all_reduce` are recorded until `stop`. Reductions of gradients are
    recorded if `hook` is registered as the communication hook of DDP.

    Attributes:
        collectives: Operation, and bytes of the tensor that this process passes.
    """

    def __init__(self) -> None:
        self.collectives: list[tuple[str, int]] = []
        self.processes = rank_and_world_size()[1]
        self._all_gather, self._all_reduce = dist.all_gather, dist.all_reduce
        # setattr, because mypy refuses to replace overloaded functions
        setattr(dist, "all_gather", self.all_gather)  # noqa: B010
        setattr(dist, "all_reduce", self.all_reduce)  # noqa: B010

    def stop(self) -> None:
        """Record no more calls."""
        setattr(dist, "all_gather", self._all_gather)  # noqa: B010
        setattr(dist, "all_reduce", self._all_reduce)  # noqa: B010

    def all_gather(self, parts: list[torch.Tensor], tensor: torch.Tensor, *rest: Any, **named: Any) -> Any:
        """Record and call `torch.distributed.all_gather`."""
        self.collectives.append(("all_gather", tensor.nbytes))
        return self._all_gather(parts, tensor, *rest, **named)

    def all_reduce(self, tensor: torch.Tensor, *rest: Any, **named: Any) -> Any:
        """Record and call `torch.distributed.all_reduce`."""
        self.collectives.append(("all_reduce", tensor.nbytes))
        return self._all_reduce(tensor, *rest, **named)

    def hook(self, state: object, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        """Record and run DDP's own reduction of a bucket of gradients, the mean."""
        work = self.all_reduce(bucket.buffer().div_(self.processes), async_op=True)
        return work.get_future().then(lambda done: done.value()[0])

    def sent(self) -> Counter[str]:
        """Return the bytes that this process sends by ring algorithms, for each operation.

        A gather of B bytes from each of W processes sends (W - 1) B from each process. A reduction of B bytes to all
        processes sends 2 (W - 1) / W B.
        """
        total: Counter[str] = Counter()
        others = self.processes - 1
        for kind, size in self.collectives:
            total[kind] += others * size if kind == "all_gather" else 2 * others * size // self.processes
        return total
