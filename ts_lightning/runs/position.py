"""The loop counters in Lightning's checkpoints, rewritten as of a moment between two steps.

Lightning counts on while the hooks of a step run, so what it stores depends on the hook in which something saved; it
then guesses that hook when it restores. With counters as of between two steps there is one case, and numbers of steps
and epochs go on as if nothing had happened.
"""

from typing import Any

MOMENTS = ("ready", "started", "processed", "completed")


def validation_to_come(checkpoint: dict[str, Any]) -> bool | None:
    """Whether the validation of a checkpoint's last step is still to come; None where that is not known."""
    total = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]
    return checkpoint.get("validation_follows", None if total["completed"] < total["processed"] else False)


def between_steps(
    checkpoint: dict[str, Any], validation_follows: bool | None, epochs_a_validation: int | None
) -> bool | None:
    """Rewrite `checkpoint["loops"]` in place; `validation_follows` None: it may, saved in a hook at a step's end.

    Returned as far as it is known then.

    epochs_a_validation: a validation at the end of every so many epochs is certain (None: not at all).
    """
    loops = checkpoint["loops"]["fit_loop"]
    batches, epochs, validated = (
        loops[name] for name in ("epoch_loop.batch_progress", "epoch_progress", "epoch_loop.val_loop.batch_progress")
    )
    # At the start of a batch `is_last_batch` speaks of that batch, which is not counted yet.
    in_next = batches["total"]["ready"] > batches["total"]["processed"]
    epoch_over = batches["is_last_batch"] and not in_next
    epoch = epochs["current"]["ready"] - 1
    if epoch_over and validation_follows is None:
        validation_follows = epochs_a_validation is not None and (epoch + 1) % epochs_a_validation == 0
    begins_next = epoch_over and not validation_follows
    for counts in (batches["total"], batches["current"]):
        _count(counts, counts["processed"])
    for counts in (epochs["total"], epochs["current"]):
        begun = counts["ready"]
        _count(counts, begun, 0 if begins_next else 1)
    if begins_next:
        _count(batches["current"], 0)
    batches["is_last_batch"] = epoch_over and not begins_next
    # "In the middle of a validation" at its first batch makes Lightning run all of it, where one is due.
    _count(validated["current"], 0)
    _count(validated["total"], 1 if validation_follows is not False else 0, 1 if validation_follows is not False else 0)
    validated["is_last_batch"] = False
    loops["epoch_loop.state_dict"]["_batches_that_stepped"] = max(0, checkpoint["global_step"] - 1)
    return validation_follows


def _count(counts: dict[str, int], begun: int, unfinished: int = 0) -> None:
    """Set all moments: `begun` were begun, of which so many are not finished."""
    for moment in MOMENTS:
        counts[moment] = begun - (unfinished if moment in ("processed", "completed") else 0)
