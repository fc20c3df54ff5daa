"""Work in Ray's tasks, on the cores and GPUs of this machine or of the cluster that RAY_ADDRESS names."""

import os
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from utils.errors import UserError, said
from utils.extras import load_extra

Result = TypeVar("Result")
HOUSE = Path(__file__).resolve().parent.parent
RETRIES = 3  # of a task whose worker has died


def run_tasks(
    work: Callable[..., Result], arguments: tuple[Any, ...], each: Iterator[tuple[Any, ...]]
) -> Iterator[Result]:
    """What `work` gives for each of some further arguments, in the order in which tasks end.

    A task has a GPU where the cluster has any, else a core; a core is left to this process. A task whose worker dies
    is run again. No more tasks are asked for than run at once, and those that run end with this iterator.

    Args:
        work: a function of a module, which the workers import from the folder where it lies here.
        arguments: its first ones, the same for all.
        each: the others.

    Raises:
        UserError: as `work`; or Ray is not installed, or a worker has died again and again.
    """
    ray = load_extra("ray", where="engine: ray")
    if not ray.is_initialized():
        settings = {"env_vars": {"PYTHONPATH": str(HOUSE)}}
        try:
            ray.init(runtime_env=settings, log_to_driver=False, logging_level="CRITICAL")
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UserError(f"engine: Ray cannot be reached ({said(error)})") from error
    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0))
    task = ray.remote(num_cpus=1, num_gpus=min(1, gpus), max_retries=RETRIES)(_within)
    cores = int(resources.get("CPU", 1))
    given = ray.put((str(Path.cwd()), work, arguments))
    running = [task.remote(given, further) for further in islice(each, max(1, gpus or cores - 1))]
    try:
        while running:
            (ended,), running = ray.wait(running)
            result = ray.get(ended)
            running += [task.remote(given, further) for further in islice(each, 1)]
            yield result
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayError as error:
        raise UserError(
            f"engine: a task of Ray's has ended without a result, {RETRIES + 1} times ({said(error)}); what is "
            "done stays, run the command again"
        ) from error
    finally:
        for left in running:
            ray.cancel(left, force=True)


def _within(given: tuple[str, Callable[..., Result], tuple[Any, ...]], further: tuple[Any, ...]) -> Result:
    """Do the work in the folder of the process that asks for it, where its paths mean what they mean there."""
    folder, work, arguments = given
    os.chdir(folder)
    return work(*arguments, *further)
