"""How many processes there are and which this is: read from environments as schedulers set them."""

import pytest

from leanvit.core.launch import PORTS, Launch, expand_hosts, expand_tasks, launch

BY_HAND = {"WORLD_SIZE": "4", "RANK": "3", "MASTER_ADDR": "one", "MASTER_PORT": "29500"}
TORCHRUN = BY_HAND | {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
BATCH = {
    "SLURM_JOB_ID": "31234567",
    "SLURM_NTASKS": "3",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURM_JOB_NODELIST": "gpu[07-09]",
    "SLURM_TASKS_PER_NODE": "2,1",
}
"""What a batch script sees before it calls srun."""
STEP = BATCH | {
    "SLURM_STEP_ID": "2",
    "SLURM_STEP_NUM_TASKS": "3",
    "SLURM_STEP_NODELIST": "gpu[08-09]",
    "SLURM_STEP_TASKS_PER_NODE": "2,1",
    "SLURM_PROCID": "2",
    "SLURM_NODEID": "1",
}
"""What srun tells the last of three tasks."""


def test_torchrun_and_hands_say_it_alike() -> None:
    assert launch(TORCHRUN) == Launch(4, 3, 2, 1, "one", 29500)
    assert launch(BY_HAND) == Launch(4, 3, 4, None, "one", 29500)
    assert launch(BY_HAND | {"SLURM_LOCALID": "1"}).local_rank == 1


def test_srun_alone_is_enough() -> None:
    found = launch(STEP)
    assert (found.world, found.rank, found.neighbours, found.local_rank) == (3, 2, 1, 0)
    assert found.host == "gpu08" and found.port in PORTS
    first = launch(STEP | {"SLURM_PROCID": "0", "SLURM_NODEID": "0"})
    assert (first.rank, first.neighbours) == (0, 2)
    assert (first.host, first.port) == (found.host, found.port), "all meet at one place"


def test_steps_and_jobs_meet_at_different_ports() -> None:
    jobs = [str(31234567 + number) for number in range(5)]
    ports = {
        launch(STEP | {"SLURM_JOB_ID": job, "SLURM_STEP_ID": str(step)}).port
        for job in jobs
        for step in range(5)
    }
    assert len(ports) == 25 and all(port in PORTS for port in ports)
    chosen = launch(STEP | {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "4321"})
    assert (chosen.host, chosen.port) == ("10.0.0.1", 4321)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"RANK": "3"},
        {"WORLD_SIZE": "1", "RANK": "0"},
        BATCH,
        STEP | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_TASKS_PER_NODE": "1"},
        STEP | {"WORLD_SIZE": "1"},
    ],
    ids=["nothing", "rank", "torchrun of one", "batch script", "srun of one", "asked to be alone"],
)
def test_one_process_is_alone(environment: dict[str, str]) -> None:
    assert launch(environment) == Launch()


def test_torchrun_within_srun_counts() -> None:
    assert launch(STEP | TORCHRUN) == launch(TORCHRUN)


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"WORLD_SIZE": "many"}, "WORLD_SIZE='many'; expected a whole number"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is 2, but RANK is not set.* --nproc-per-node=2"),
        ({**BY_HAND, "RANK": "4"}, "RANK is 4, but of 4 processes the last has 3"),
        ({**BY_HAND, "RANK": "-1"}, "RANK='-1'; expected a whole number"),
        (
            {k: v for k, v in STEP.items() if k != "SLURM_STEP_NODELIST"},
            "SLURM_STEP_NODELIST is not set, so this is no task of srun",
        ),
        (STEP | {"SLURM_STEP_TASKS_PER_NODE": "3"}, "'3', which is not 3 tasks on more than 1"),
        (STEP | {"SLURM_STEP_TASKS_PER_NODE": "2(x2)"}, "which is not 3 tasks"),
    ],
)
def test_what_cannot_be_is_refused(environment: dict[str, str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        launch(environment)


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("gpu1", ["gpu1"]),
        ("node[003-005,7],gpu1", ["node003", "node004", "node005", "node7", "gpu1"]),
        ("a-1.lan,b[09-11].lan", ["a-1.lan", "b09.lan", "b10.lan", "b11.lan"]),
        ("r[1-2]n[1,3]", ["r1n1", "r1n3", "r2n1", "r2n3"]),
        ("[8-9]", ["8", "9"]),
        ("n[7]", ["n7"]),
    ],
)
def test_lists_of_hosts(text: str, hosts: list[str]) -> None:
    assert expand_hosts(text) == hosts


@pytest.mark.parametrize(
    "text",
    ["", ",", "a,,b", "a,", "n[1-", "n[]", "n[3-1]", "n[1,]", "n[a]", "n]1[", "a b", "n[[1]]"],
)
def test_what_is_no_list_of_hosts(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no (list of hosts|range of numbers)"):
        expand_hosts(text)


def test_tasks_of_machines() -> None:
    assert expand_tasks("4") == [4]
    assert expand_tasks("2(x3),1,3(x1)") == [2, 2, 2, 1, 3]
    for text in ("", "2,", "x3", "2(3)", "-1"):
        with pytest.raises(ValueError, match="is no list of tasks"):
            expand_tasks(text)
