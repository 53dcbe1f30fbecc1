"""tools/benchmark.py: counts operations as they are, and measures what it says; no test depends on the speed."""

import os
import pathlib
import re
import signal
import subprocess
import sys

import pytest

from tools import benchmark


@pytest.mark.paper
def test_rendering_a_photo_of_ebb_takes_1317_gigaflop():
    assert benchmark.operations(1, 512, 768) == pytest.approx(1.317e12, rel=1e-3)


def test_operations_grow_with_the_number_of_pixels_and_each_level_adds_some():
    counts = [benchmark.operations(level, 64, 64) for level in (7, 1)]
    assert counts == sorted(counts) and counts[0] < counts[1]
    assert benchmark.operations(7, 128, 64) == 2 * counts[0]


def test_a_row_has_the_rate_the_limit_and_their_ratio():
    found = {"what": "render", "result": "2.00 s", "gflops": 300.0, "best_gflops": 400.0, "peak": 1.5e9}
    assert benchmark.row(found) == "| render | 2.00 s | 300 | 400 | 0.75 | 1.5 GB |"
    without = {"what": "data", "result": "80 a second", "peak": 2e9}
    assert benchmark.row(without) == "| data | 80 a second |  |  |  | 2.0 GB |"


def test_functions_are_measured_in_turns_without_the_first_calls(monkeypatch):
    monkeypatch.setattr(benchmark, "REPETITIONS", 3)
    calls = []
    seconds = benchmark.alternate(lambda: calls.append("a"), lambda: calls.append("b"))
    assert "".join(calls) == "abababab" and len(seconds) == 2 and 0 < min(seconds) <= max(seconds) < 1


def test_training_and_rendering_are_measured_beside_a_plain_convolution(monkeypatch):
    monkeypatch.setattr(benchmark, "REPETITIONS", 1)
    monkeypatch.setattr(benchmark, "PHOTO_SIZE", (192, 128))
    for prepare, what in ((benchmark.rendering, "render 128 x 192, level 7"), (benchmark.training, "training step, ")):
        found = benchmark.computing(prepare, 7, "float32", "0.125")
        assert found["what"].startswith(what) and found["what"].endswith("width 0.125, float32")
        assert found["gflops"] > 0 and found["best_gflops"] > 0


def test_the_command_prints_a_markdown_table_with_machine_versions_and_date(dataset):
    done = subprocess.run([sys.executable, "-m", "tools.benchmark", "what=data", "level=7", f"dataset_dir={dataset}"],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    device, machine, _, header, dashes, row = done.stdout.splitlines()
    assert device.startswith("Computing on")
    assert re.match(r"20\d\d-\d\d-\d\d; .*cores; Python 3\.\d+.*TensorFlow 2\.", machine)
    assert header.count("|") == dashes.count("|") == row.count("|") == 7
    assert re.match(r"\| training pairs, level 7 \| \d+ a second, \d+\.\d times the \d+ of one core with plain Pillow; "
                    r"\d+ with cache_dir=", row)


def test_many_sizes_are_rendered_and_measured_in_three_parts(monkeypatch):
    monkeypatch.setattr(benchmark, "SIZES", 3)
    monkeypatch.setattr(benchmark, "SIDES", (32, 48))
    found = benchmark.many_sizes(7, "float32", "0.125")
    assert found["what"] == "render 3 sizes, level 7, width 0.125, float32"
    numbers = re.findall(r"(\d+\.\d\d) s a megapixel and (\d+\.\d\d) GB", found["result"])
    assert len(numbers) == 3 and min(float(memory) for _, memory in numbers) > 0.1


@pytest.mark.parametrize("step, limit", [(2.0, 2.0), (0.5, 0.75)])
def test_hours_of_a_level_follow_from_step_reading_and_iterations(dataset, monkeypatch, step, limit):
    monkeypatch.setitem(benchmark.checkpoints.PAPER_BATCH_SIZES, 7, 1)
    monkeypatch.setattr(benchmark, "alternate", lambda *works: [step, 24.0, 18.0])  # of 24 pairs
    found = benchmark.schedule(7, "float32", "0.125", dataset)
    assert found["what"] == "level 7, 5000 iterations of batch 1, width 0.125, float32"
    assert found["hours"] == pytest.approx(5000 * limit / 3600)
    assert found["result"] == (f"step {step:.2f} s, reading 1.00 s, 0.75 s with cache_dir=: "
                               f"{5000 * limit / 3600:.1f} hours")


def test_a_measurement_that_the_system_kills_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "measure", be_killed)
    settings = benchmark.utils.parse_arguments([], benchmark.PARAMETERS, benchmark.USAGE)
    with pytest.raises(benchmark.utils.DataError, match="what=train level=3: .*died.*bfloat16"):
        benchmark.measure_in_own_process("train", 3, settings, "photos", str(tmp_path))
    assert (tmp_path / "begun").exists()


def be_killed(kind, level, precision, width, dataset_dir, folder, started):
    pathlib.Path(folder, "begun").touch()
    os.kill(os.getpid(), signal.SIGKILL)


def test_the_start_is_that_of_the_real_training(dataset, workplace):
    found = benchmark.one_iteration(7, "float32", "0.125", str(dataset), started=benchmark.time.time())
    assert found["what"] == "process start to the end of one iteration, level 7, width 0.125, float32"
    assert float(found["result"].split()[0]) > 0
