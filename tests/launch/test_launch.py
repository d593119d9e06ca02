"""The launchers in launch/, around a stub of `python -m jaxvision.main`; Slurm and Ray also for real."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from support.compile_flags import xla_flags
from support.paths import ROOT

from jaxvision.parallel.cores import default_workers

LAUNCH = ROOT / "launch"
TINY = [
    "--config", "configs/quickstart.py:resnet", "--config.data.batch_size=16", "--config.model.image_size=16",
    "--config.train.steps=30", "--config.train.evaluate_every=0.1", "--config.train.log_every=5",
]  # fmt: skip


def stub(folder: Path, code: str) -> None:
    """Writes a package `jaxvision` that `python -m jaxvision.main` runs when started in `folder`."""
    (folder / "jaxvision").mkdir()
    (folder / "jaxvision" / "__init__.py").touch()
    (folder / "jaxvision" / "main.py").write_text(f"import os, signal, sys, time\n{code}")


def program(folder: Path, name: str, code: str) -> None:
    """Writes an executable bash script."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/bash\n{code}")
    (folder / name).chmod(0o755)


def losses(workdir: Path) -> list[tuple[str, int, float]]:
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [(line["split"], line["step"], line["loss"]) for line in lines]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "XLA_FLAGS": xla_flags()}


def wait_for(text: str, file: Path, seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while not file.is_file() or text not in file.read_text():
        assert time.monotonic() < deadline, f"no {text!r} in {file.read_text() if file.is_file() else file}"
        time.sleep(0.3)


# --- local.py ---


def local(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, LAUNCH / "local.py", *arguments],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.fixture
def launcher() -> ModuleType:
    spec = importlib.util.spec_from_file_location("local_launcher", LAUNCH / "local.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_local_sets_the_variables_of_each_process(tmp_path: Path) -> None:
    stub(
        tmp_path,
        "names = 'JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID', 'XLA_FLAGS'\n"
        "row = [*(os.environ[name] for name in names), repr(sys.argv[1:])]\n"
        "os.write(1, ('|'.join(row) + '\\n').encode())",
    )
    process = local(tmp_path, "--processes", "3", "--devices", "2", "--", "--workdir", "my runs/it's")
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    rows = sorted((line.split("|") for line in out.splitlines()), key=lambda row: row[2])
    assert [row[1:3] for row in rows] == [["3", "0"], ["3", "1"], ["3", "2"]]
    assert len({row[0] for row in rows}) == 1
    assert all(row[3].endswith("--xla_force_host_platform_device_count=2") for row in rows)
    assert {row[4] for row in rows} == {repr(["--workdir", "my runs/it's"])}


def test_local_forwards_sigterm_and_waits_for_all_to_save(tmp_path: Path) -> None:
    stub(
        tmp_path,
        "def save(*_):\n"
        "    time.sleep(1); os.write(1, b'saved\\n'); os._exit(75)\n"
        "signal.signal(signal.SIGTERM, save); os.write(1, b'ready\\n'); [time.sleep(.1) for _ in range(600)]",
    )
    process = local(tmp_path, "--processes", "2", "--", "--config", "x")
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(2)] == ["ready\n"] * 2
    process.terminate()
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 75
    assert out == "saved\nsaved\n"


def test_local_names_the_process_that_died_first(tmp_path: Path) -> None:
    stub(
        tmp_path,
        "if os.environ['JAX_PROCESS_ID'] == '1':\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "time.sleep(2); sys.exit(1)  # as JAX does when another process is lost",
    )
    process = local(tmp_path, "--processes", "2", "--", "--config", "x")
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (
        137,
        "process 1 was the first to end, by SIGKILL. Run the same command to resume.\n",
    )


def test_local_kills_processes_that_do_not_end(
    launcher: ModuleType, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(launcher, "GRACE", 0.5)
    hangs = subprocess.Popen(["bash", "-c", "trap '' TERM; while :; do sleep 0.1; done"])
    fails = subprocess.Popen(["bash", "-c", "exit 3"])
    assert launcher.wait([hangs, fails], []) == 3
    assert hangs.returncode == -signal.SIGKILL
    assert capfd.readouterr().err == "process 1 was the first to end, with status 3\n"


@pytest.mark.parametrize("arguments", [[], ["--processes", "0", "--", "--config", "x"]])
def test_local_rejects_bad_arguments(tmp_path: Path, arguments: list[str]) -> None:
    process = local(tmp_path, *arguments)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert err.startswith("error: ")
    assert err.endswith("after -- (see local.py --help).\n")
    assert err.count("\n") == 1


@pytest.mark.parametrize("name", ["local.py", "ray_train.py"])
def test_help_shows_the_command(name: str) -> None:
    done = subprocess.run(
        [sys.executable, LAUNCH / name, "--help"], capture_output=True, text=True, timeout=60, check=True
    )
    assert f"python launch/{name} " in done.stdout
    assert "--workdir" in done.stdout


# --- slurm.sbatch ---


@pytest.mark.parametrize("name", ["slurm.sbatch", "tpu_pod.sh"])
def test_scripts_pass_shellcheck(name: str) -> None:
    subprocess.run(["bash", "-n", LAUNCH / name], check=True, timeout=60)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", LAUNCH / name], check=True, timeout=60)


@pytest.mark.parametrize(
    ("status", "state", "again"),
    [
        (0, "RUNNING", False),
        (2, "RUNNING", False),  # a user's mistake
        (75, "RUNNING", True),
        (143, "RUNNING", True),  # SIGTERM before Python handled signals
        (75, "COMPLETING", False),  # scancel
        (137, "RUNNING", False),
    ],
)
def test_slurm_requeues_only_after_sigterm(tmp_path: Path, status: int, state: str, again: bool) -> None:
    program(tmp_path / "bin", "srun", f'printf "%s\\n" "$@" > {tmp_path}/srun; exit {status}')
    program(tmp_path / "bin", "scontrol", f'echo "$@" >> {tmp_path}/scontrol; echo "  JobState={state} Reason=None"')
    env = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "PYTHON": "py"}
    done = subprocess.run(
        ["bash", LAUNCH / "slurm.sbatch", "--workdir", "my runs/it's"], env=env, timeout=60, check=False
    )
    assert done.returncode == status
    asked = (tmp_path / "srun").read_text().splitlines()
    assert asked[asked.index("py") :] == ["py", "-m", "jaxvision.main", "--workdir", "my runs/it's"]
    calls = (tmp_path / "scontrol").read_text() if (tmp_path / "scontrol").exists() else ""
    assert ("requeue 7" in calls) == again


@pytest.mark.parametrize("given", ["12", None])
def test_slurm_passes_the_cores_of_a_task_on_to_srun(tmp_path: Path, given: str | None) -> None:
    """srun does not take them from the job since Slurm 22.05. Outside a job there is one."""
    program(tmp_path / "bin", "srun", f'printf "%s\\n" "$@" > {tmp_path}/srun')
    env = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    env |= {"SLURM_CPUS_PER_TASK": given} if given else {}
    subprocess.run(["bash", LAUNCH / "slurm.sbatch"], env=env, timeout=60, check=True)
    assert f"--cpus-per-task={given or 1}" in (tmp_path / "srun").read_text().splitlines()
    directives = [line.split()[1] for line in (LAUNCH / "slurm.sbatch").read_text().splitlines() if "#SBATCH" in line]
    cores = int(next(line for line in directives if "--cpus-per-task=" in line).split("=")[1])
    assert default_workers(cores) == cores


def test_slurm_forwards_a_signal_to_the_script_and_waits(tmp_path: Path) -> None:
    program(
        tmp_path / "bin", "srun", "trap 'sleep 1; echo saved; exit 75' TERM; echo ready; while :; do sleep 0.1; done"
    )
    program(tmp_path / "bin", "scontrol", "echo JobState=RUNNING $1")
    env = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    process = subprocess.Popen(["bash", LAUNCH / "slurm.sbatch"], env=env, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.terminate()
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 75
    assert out == "saved\nstopped by SIGTERM: requeueing the job\nJobState=RUNNING requeue\n"


@pytest.mark.slurm
@pytest.mark.slow
def test_real_slurm_job_resumes_to_the_same_result(tmp_path: Path) -> None:
    """Two tasks of `srun`. SIGTERM saves and requeues, `scancel` ends the job, a user's mistake is not retried."""

    def submit(name: str, *flags: str, wait: bool = False) -> str:
        command = ["sbatch", "--parsable", "--ntasks=2", "--cpus-per-task=1", f"--output={tmp_path / name}.out"]
        done = subprocess.run(
            [*command, *(["--wait"] * wait), LAUNCH / "slurm.sbatch", *TINY, "--workdir", tmp_path / name, *flags],
            cwd=ROOT, env={**environment(), "PYTHON": sys.executable}, capture_output=True, text=True, timeout=900,
            check=False,
        )  # fmt: skip
        assert done.returncode == (2 if flags else 0), done.stderr + (tmp_path / f"{name}.out").read_text()
        return done.stdout.strip()

    def state(job: str) -> dict[str, str]:
        shown = subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True, check=True, timeout=60)
        return dict(pair.split("=", 1) for pair in shown.stdout.split() if "=" in pair)

    def ended(job: str, restarts: int) -> str:
        for _ in range(900):
            now = state(job)
            if now["JobState"] == "PENDING" and int(now["Restarts"]) == restarts:  # Slurm waits two minutes
                subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], check=False, timeout=60)
            elif now["JobState"] in ("COMPLETED", "CANCELLED", "FAILED"):
                assert int(now["Restarts"]) == restarts
                return now["JobState"]
            time.sleep(1)
        raise AssertionError(now)

    submit("straight", wait=True)
    assert (tmp_path / "straight.out").read_text().count("compiling") == 1  # only process 0 logs
    job = submit("stopped")
    wait_for("test at step", tmp_path / "stopped.out")
    subprocess.run(["scancel", "--signal=TERM", job], check=True, timeout=60)
    assert ended(job, restarts=1) == "COMPLETED"
    assert "resuming after step" in (tmp_path / "stopped.out").read_text()
    assert losses(tmp_path / "stopped") == losses(tmp_path / "straight")

    job = submit("canceled")
    wait_for("test at step", tmp_path / "canceled.out")
    subprocess.run(["scancel", job], check=True, timeout=60)
    assert ended(job, restarts=0) == "CANCELLED"
    time.sleep(5)
    assert state(job)["JobState"] == "CANCELLED"
    assert "is saved" in (tmp_path / "canceled.out").read_text()

    submit("mistake", "--config.train.steps=0", wait=True)


# --- tpu_pod.sh ---


def test_tpu_pod_runs_the_command_on_the_hosts_as_typed(tmp_path: Path) -> None:
    """A fake gcloud has one host: a folder on this machine."""
    host, checkout, flags = (
        tmp_path / "host",
        tmp_path / "checkout",
        ["--workdir", "my runs/it's $HOME", "--config=a b"],
    )
    host.mkdir()
    (checkout / "launch").mkdir(parents=True)
    shutil.copy(LAUNCH / "tpu_pod.sh", checkout / "launch")
    (checkout / "pyproject.toml").touch()
    program(
        tmp_path / "bin", "gcloud",
        f'printf "%s\\n" "$@" >> {tmp_path}/gcloud; cd {host}\n'
        '[ "$4" = scp ] && exec cp "$5" "${6#*:}"\n'
        'while [ "$1" != --command ]; do shift; done; exec bash -c "$2"',
    )  # fmt: skip
    program(
        tmp_path / "bin", "python3",  # makes a virtual environment with two programs
        f"mkdir -p \"$3/bin\"; printf '#!/bin/bash\\n' | tee $3/bin/pip > $3/bin/python; chmod +x $3/bin/*\n"
        f"""echo 'printf "%s\\n" "$JAXVISION_DISTRIBUTED" "$PWD" "$@" > {tmp_path}/ran' >> $3/bin/python""",
    )  # fmt: skip
    env = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    script = checkout / "launch" / "tpu_pod.sh"
    subprocess.run([script, "pod", "us-west4-a", *flags], env=env, check=True, timeout=60)
    assert (tmp_path / "ran").read_text().splitlines() == ["1", str(host / "jaxvision"), "-m", "jaxvision.main", *flags]
    asked = (tmp_path / "gcloud").read_text()
    assert asked.count("--worker=all") == asked.count("--zone\nus-west4-a") == 2
    assert (host / "jaxvision" / "pyproject.toml").exists()
    short = subprocess.run([script, "pod"], env=env, capture_output=True, text=True, timeout=60, check=False)
    assert (short.returncode, "launch/tpu_pod.sh NAME ZONE" in short.stdout) == (2, True)


# --- gke_jobset.yaml ---


def test_jobset_is_consistent() -> None:
    jobset = yaml.safe_load((LAUNCH / "gke_jobset.yaml").read_text())
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    [replicated] = jobset["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    [container] = pod["containers"]
    hosts, chips = job["parallelism"], container["resources"]["limits"]["google.com/tpu"]
    rows, columns = map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
    assert hosts == job["completions"]
    assert hosts * chips == rows * columns
    assert container["command"] == ["python", "-m", "jaxvision.main"]
    assert {"name": "JAXVISION_DISTRIBUTED", "value": "1"} in container["env"]
    assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
    # A user's mistake (status 2) ends the job, and its reason ends the JobSet. Everything else is retried.
    assert (job["backoffLimit"], pod["restartPolicy"]) == (0, "Never")  # podFailurePolicy requires Never
    [rule] = job["podFailurePolicy"]["rules"]
    codes = {"containerName": container["name"], "operator": "In", "values": [2]}
    assert rule == {"action": "FailJob", "onExitCodes": codes}
    [rule] = jobset["spec"]["failurePolicy"]["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])


def test_jobset_has_only_fields_of_the_api() -> None:
    api = pytest.importorskip(
        "kubeflow_trainer_api.models", reason="needs kubeflow-trainer-api: JobSet's API as classes"
    )
    jobset = yaml.safe_load((LAUNCH / "gke_jobset.yaml").read_text())
    assert api.JobsetV1alpha2JobSet.from_dict(jobset).to_dict() == jobset  # from_dict drops unknown fields


# --- ray_train.py ---


@pytest.mark.ray
@pytest.mark.slow
def test_real_ray_restarts_a_lost_process_and_reports_a_mistake_once(tmp_path: Path) -> None:
    def start(name: str, *flags: str) -> subprocess.Popen[bytes]:
        often = "--config.train.save_every=3"
        command = [sys.executable, LAUNCH / "ray_train.py", "--workers", "2", "--", *TINY, often, *flags]
        with (tmp_path / f"{name}.out").open("w") as out:
            return subprocess.Popen(
                [*command, "--workdir", tmp_path / name], cwd=ROOT, env=environment(), stdout=out, stderr=out
            )

    out = tmp_path / "run.out"
    process = start("run")
    wait_for("", tmp_path / "run" / "checkpoints" / "3" / "checksums.json")  # the first checkpoint is complete
    found = subprocess.run(
        ["pgrep", "-f", f"^{sys.executable} -m jaxvision.main .*{tmp_path / 'run'}"],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    pids = [int(line) for line in found.stdout.split()]
    assert len(pids) == 2
    os.kill(pids[1], signal.SIGKILL)
    assert process.wait(900) == 0, out.read_text()
    assert "resuming after step" in out.read_text()
    assert losses(tmp_path / "run")[-1][:2] == ("test", 30)

    assert start("mistake", "--config.train.steps=0").wait(900) == 2
    text = (tmp_path / "mistake.out").read_text()
    for who in ("error", "error in process 1"):
        assert text.count(f"{who}: config.train.steps: got 0, expected 1 or more") == 1
    assert "[FailurePolicy] RETRY" not in text  # Ray logs it for each restart after a failure
