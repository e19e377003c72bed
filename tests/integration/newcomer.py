"""What a newcomer met, thing by thing: each works, or is answered by a line that says what to do.

    python -m tests.integration.newcomer

runs the tests that show it and prints a line a thing; it exits with 1 where one failed. `test_newcomer.py` has those
that no other file has.
"""

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
ITEMS: dict[int, tuple[str, tuple[str, ...]]] = {
    1: (
        "a class and a folder train with any tokenizer, without an edit",
        (
            "tests/unit/models/test_encode.py::test_rows_of_the_codec_leave_out_what_is_several_tokens",
            "tests/unit/cli/test_init.py::test_it_writes_a_run_that_trains_and_is_asked",
        ),
    ),
    2: (
        "boxes in a LLaVA file are counted, read, scored; a fit without a gradient stops",
        (
            "tests/unit/pipelines/test_cases.py::test_boxes_that_nobody_reads_are_counted",
            "tests/unit/pipelines/test_cases.py::test_boxes_of_a_conversation_are_scored_in_the_frame_that_is_named",
            "tests/unit/training/test_silence.py::test_no_gradient_stops_and_says_which_rows_there_were",
        ),
    ),
    3: (
        "answers longer than max_new_tokens are said before, and counted",
        ("tests/integration/test_newcomer.py::test_item_3_answers_that_are_cut_off",),
    ),
    4: (
        "GRPO behind SFT earns rewards without tags; another `every` is named",
        (
            "tests/integration/test_newcomer.py::test_item_4_a_reward_without_tags",
            "tests/integration/test_newcomer.py::test_item_4_another_every_is_named",
            "tests/unit/cli/test_init.py::test_it_writes_a_run_that_trains_and_is_asked",
        ),
    ),
    5: (
        "plain questions for a place go to grounding",
        (
            "tests/integration/test_newcomer.py::test_item_5_questions_for_a_place",
            "tests/unit/models/test_task_router.py::test_wordings_that_people_wrote",
        ),
    ),
    6: ("one picture is asked about from Python and by a command", ("tests/unit/runs/test_ask.py",)),
    7: ("exports open in the tools they are for, and the group can read them", ("tests/unit/runs/test_export.py",)),
    8: (
        "training from Python: plain sources, functions, a checkpoint for the command, a run's folder",
        (
            "tests/integration/test_python_page.py",
            "tests/unit/runs/test_load.py::test_a_runs_folder_stands_for_its_last_checkpoint",
        ),
    ),
    9: (
        "YOLO, Roboflow, LabelImg, ids as text, captions alone, panoptic, several of a name",
        tuple(
            f"tests/unit/pipelines/test_cases.py::{name}"
            for name in (
                "test_yolo_folders",
                "test_roboflows_voc_export",
                "test_names_in_the_encoding_that_the_file_declares",
                "test_sizes_as_text_and_ids_as_text",
                "test_captions_alone",
                "test_captions_alone_panoptic_and_roboflow",
                "test_all_of_a_name_and_labels_beside_the_pictures",
            )
        ),
    ),
    10: (
        "LoRA takes all linear layers by default",
        ("tests/unit/models/test_lora.py::test_all_linear_layers_but_routers_by_default",),
    ),
    11: (
        "help is short, wrong words are answered, packages validate, a longer run goes on, figures by whole names",
        (
            "tests/unit/cli/test_command.py",
            "tests/integration/test_export.py::test_validate_reloads_it",
            "tests/integration/test_fit.py::test_a_checkpoint_from_python_validates_by_the_command",
            "tests/integration/test_resume.py::test_a_longer_run_goes_on_as_if_it_had_always_been_that_long",
            "tests/unit/training/test_progress.py",
        ),
    ),
}


class Outcomes:
    """Counts the outcomes of each test function."""

    def __init__(self) -> None:
        self.of: dict[str, Counter[str]] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.of.setdefault(report.nodeid.split("[")[0], Counter())[report.outcome] += 1

    def summed(self, shown: tuple[str, ...]) -> Counter[str]:
        """Of the tests that one of `shown` (a file, or a function in one) names."""
        return sum((n for test, n in self.of.items() if test in shown or test.split("::")[0] in shown), Counter())


def main() -> int:
    outcomes = Outcomes()
    named = list(dict.fromkeys(test for _, shown in ITEMS.values() for test in shown))
    status = pytest.main(["-q", "-p", "no:cacheprovider", f"--rootdir={ROOT}", *named], plugins=[outcomes])
    for number, (what, shown) in ITEMS.items():
        counted = ", ".join(f"{n} {kind}" for kind, n in sorted(outcomes.summed(shown).items()))
        print(f"{number:>2}  {counted or 'not run':<12}  {what}")
    return int(status != 0 or any(not outcomes.summed(shown)["passed"] for _, shown in ITEMS.values()))


if __name__ == "__main__":
    sys.exit(main())
