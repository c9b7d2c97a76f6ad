"""Who started a process, and its place among the ranks: by variables as each launcher was seen to set them."""

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from treadle.environments import Environment, World, environment_for
from treadle.errors import ConfigError

TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "GROUP_RANK": "1",
    "GROUP_WORLD_SIZE": "2",
    "ROLE_RANK": "3",
    "ROLE_NAME": "default",
    "ROLE_WORLD_SIZE": "4",
    "MASTER_ADDR": "host1",
    "MASTER_PORT": "34863",
    "TORCHELASTIC_RESTART_COUNT": "2",
    "TORCHELASTIC_MAX_RESTARTS": "3",
    "TORCHELASTIC_RUN_ID": "run-7",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
}
RANDOM_ID = "2e669819-b37a-49d9-b431-d0c2b2fc5e14"

SBATCH = {  # in the batch script
    "SLURM_JOB_ID": "71",
    "SLURM_JOB_NAME": "probe",
    "SLURM_JOB_NODELIST": "node[08-09]",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURM_NPROCS": "3",
    "SLURM_NTASKS": "3",
    "SLURM_PROCID": "0",
    "SLURM_TASKS_PER_NODE": "2,1",
}
SRUN = {  # in each task
    **SBATCH,
    "SLURM_LOCALID": "1",
    "SLURM_PROCID": "1",
    "SLURM_STEPID": "0",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "node[08-09]",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NUM_TASKS": "3",
    "SLURM_STEP_TASKS_PER_NODE": "2,1",
}
ONE_TASK_EACH = {  # for torchrun
    **SRUN,
    "SLURM_NTASKS": "2",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
}
SALLOC = {  # in its shell, on the login node
    "SLURM_JOB_ID": "71",
    "SLURM_JOB_NAME": "interactive",
    "SLURM_JOB_NODELIST": "node08",
    "SLURM_JOB_NUM_NODES": "1",
    "SLURM_NTASKS": "2",
    "SLURM_TASKS_PER_NODE": "2",
}
SALLOC_ON_A_NODE = {  # LaunchParameters=use_interactive_step
    **SALLOC,
    "SLURM_PROCID": "0",
    "SLURM_PTY_PORT": "40733",
    "SLURM_STEP_ID": "4294967290",
    "SLURM_STEP_NUM_TASKS": "1",
}
PTY = {**SRUN, "SLURM_JOB_NAME": "bash", "SLURM_PTY_PORT": "46481", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}

OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "OMPI_COMM_WORLD_NODE_RANK": "1",
    "PMIX_NAMESPACE": "809828353",
    "PMIX_RANK": "1",
}
MPICH = {"PMI_RANK": "1", "PMI_SIZE": "2", "PMI_FD": "8", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}

JSRUN = {
    "LSB_JOBID": "612",
    "JSM_NAMESPACE_RANK": "3",
    "JSM_NAMESPACE_SIZE": "4",
    "JSM_NAMESPACE_LOCAL_RANK": "1",
    "JSM_NAMESPACE_LOCAL_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "MASTER_ADDR": "h41n08",
}

BY_HAND = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29511"}
PYTORCHJOB = {
    "KUBERNETES_SERVICE_HOST": "10.96.0.1",
    "RANK": "1",
    "WORLD_SIZE": "2",
    "MASTER_ADDR": "fit-master-0",
    "MASTER_PORT": "23456",
    "PET_NNODES": "2",
    "PET_NPROC_PER_NODE": "auto",
    "PET_NODE_RANK": "1",
}
TRAINJOB = {
    "KUBERNETES_SERVICE_HOST": "10.96.0.1",
    "PET_NNODES": "2",
    "PET_NPROC_PER_NODE": "auto",
    "PET_NODE_RANK": "1",
    "PET_MASTER_ADDR": "fit-node-0-0.fit",
    "PET_MASTER_PORT": "29400",
}
RAY = {
    "RAY_JOB_ID": "02000000",
    "RANK": "2",
    "WORLD_SIZE": "3",
    "LOCAL_RANK": "0",
    "LOCAL_WORLD_SIZE": "1",
    "NODE_RANK": "1",
    "MASTER_ADDR": "10.0.0.4",
    "MASTER_PORT": "41233",
}
LAUNCHED = {
    "TREADLE_LAUNCHED": "1",
    "RANK": "1",
    "WORLD_SIZE": "2",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "NODE_RANK": "0",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29512",
}


def world_of(variables: dict[str, str]) -> World:
    return environment_for(variables).world(variables)


@pytest.fixture
def ray_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a worker of Ray, ray.train is imported."""
    monkeypatch.setitem(sys.modules, "ray.train", ModuleType("ray.train"))


class TestAlone:
    def test_is_who_nobody_started(self) -> None:
        assert world_of({}) == World()

    def test_is_not_asked_for_twice(self) -> None:
        assert environment_for({}).requeue({}) is False

    def test_is_the_default_of_this_process(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TREADLE_ENVIRONMENT", "alone")
        assert environment_for().name == "alone"


class TestRanksOfOurOwn:
    def test_have_the_place_that_the_first_gave_them(self) -> None:
        assert world_of(LAUNCHED) == World(
            environment="ours", rank=1, size=2, local_rank=1, local_size=2, port=29512, started=True
        )

    def test_know_the_job_they_are_in(self) -> None:
        """A batch script of one task starts two ranks: they are SLURM's job all the same."""
        world = world_of({**SBATCH, "SLURM_RESTART_COUNT": "1", **LAUNCHED})
        assert (world.environment, world.job, world.restarts) == ("ours", "slurm-71", 1)


class TestTorchrun:
    def test_says_where_a_rank_stands(self) -> None:
        assert world_of(TORCHRUN) == World(
            environment="torchrun",
            rank=3,
            size=4,
            local_rank=1,
            local_size=2,
            node_rank=1,
            nodes=2,
            address="host1",
            port=34863,
            started=True,
            job="torchrun-run-7",
            restarts=2,
        )

    @pytest.mark.parametrize("run_id, job", [("none", "host1:34863"), (RANDOM_ID, RANDOM_ID), ("100", "100")])
    def test_names_the_job(self, run_id: str, job: str) -> None:
        """On one node it makes up a name, the same when the agent starts the ranks again."""
        assert world_of({**TORCHRUN, "TORCHELASTIC_RUN_ID": run_id}).job == f"torchrun-{job}"

    def test_wins_inside_of_srun(self) -> None:
        assert environment_for({**ONE_TASK_EACH, **TORCHRUN}).name == "torchrun"

    def test_inside_of_slurm_is_the_same_job_when_requeued(self) -> None:
        """Then the random id is another, SLURM's is not."""
        variables = {**ONE_TASK_EACH, **TORCHRUN, "TORCHELASTIC_RUN_ID": RANDOM_ID, "SLURM_RESTART_COUNT": "1"}
        assert (world_of(variables).job, world_of(variables).restarts) == ("slurm-71", 3)

    def test_several_times_on_a_node_is_an_error(self) -> None:
        """Each task would train the whole thing."""
        alone = {**TORCHRUN, "RANK": "1", "WORLD_SIZE": "2", "GROUP_RANK": "0", "GROUP_WORLD_SIZE": "1"}
        with pytest.raises(
            ConfigError, match=r"3 tasks, up to 2 on a node, and torchrun knows of 1.*\n.*\n.*per-node=1"
        ):
            world_of({**SRUN, **alone})

    def test_several_times_on_a_node_that_know_one_another_are_fine(self) -> None:
        one_node = {**ONE_TASK_EACH, "SLURM_STEP_TASKS_PER_NODE": "2"}
        assert world_of({**one_node, **TORCHRUN}).nodes == 2

    def test_that_left_something_out(self) -> None:
        variables = {name: value for name, value in TORCHRUN.items() if name != "WORLD_SIZE"}
        with pytest.raises(ConfigError, match="WORLD_SIZE is missing"):
            world_of(variables)


class TestSlurm:
    def test_says_where_a_task_of_srun_stands(self) -> None:
        world = world_of(SRUN)
        assert world == World(
            environment="slurm",
            rank=1,
            size=3,
            local_rank=1,
            local_size=2,
            nodes=2,
            address="node08",
            port=world.port,
            started=True,
            job="slurm-71",
        )

    def test_counts_the_tasks_of_this_node(self) -> None:
        """Nodes need not have as many."""
        world = world_of({**SRUN, "SLURM_PROCID": "2", "SLURM_LOCALID": "0", "SLURM_NODEID": "1"})
        assert (world.local_size, world.node_rank) == (1, 1)

    def test_leads_all_tasks_to_one_port(self) -> None:
        ports = {world_of({**SRUN, "SLURM_PROCID": str(rank), "SLURM_LOCALID": "0"}).port for rank in range(3)}
        assert len(ports) == 1
        assert ports < set(range(20_000, 32_000))

    def test_leads_other_jobs_and_steps_to_other_ports(self) -> None:
        there = [world_of({**SRUN, "SLURM_JOB_ID": str(job)}).port for job in (71, 72, 4_000_000)]
        there.append(world_of({**SRUN, "SLURM_STEP_ID": "1"}).port)
        assert len(set(there)) == 4

    def test_leaves_address_and_port_to_who_sets_them(self) -> None:
        world = world_of({**SRUN, "MASTER_ADDR": "10.0.0.8", "MASTER_PORT": "29000"})
        assert (world.address, world.port) == ("10.0.0.8", 29000)

    def test_says_how_often_it_has_requeued_the_job(self) -> None:
        assert world_of({**SRUN, "SLURM_RESTART_COUNT": "2"}).restarts == 2

    def test_names_an_array_job_by_its_task_where_it_must(self) -> None:
        """The last task has the array's own id."""
        array = {**SRUN, "SLURM_ARRAY_JOB_ID": "71", "SLURM_ARRAY_TASK_ID": "4"}
        assert world_of(array).job == "slurm-71_4"
        assert world_of({**array, "SLURM_JOB_ID": "72"}).job == "slurm-72"


class TestABatchScriptWithoutSrun:
    def test_of_several_tasks_is_an_error(self) -> None:
        """It must not wait for ranks that nobody starts."""
        with pytest.raises(
            ConfigError, match=r"3 tasks, and this process was not started by srun[^$]*fix: srun python"
        ):
            world_of(SBATCH)

    def test_of_several_tasks_may_be_alone_on_purpose(self) -> None:
        assert world_of({**SBATCH, "TREADLE_ENVIRONMENT": "alone"}) == World()

    def test_of_one_task_may_start_ranks_on_its_node(self) -> None:
        world = world_of({**SBATCH, "SLURM_NTASKS": "1", "SLURM_RESTART_COUNT": "1"})
        assert world == World(environment="slurm", job="slurm-71", restarts=1)

    def test_is_known_when_it_was_submitted_from_a_task(self) -> None:
        """The variables of that task are left over."""
        left = {"SLURM_PTY_PORT": "35523", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1"}
        with pytest.raises(ConfigError, match="3 tasks"):
            world_of({**SBATCH, **left, "SLURM_STEP_TASKS_PER_NODE": "1"})

    def test_that_runs_mpirun_is_mpi(self) -> None:
        assert environment_for({**SBATCH, **OPEN_MPI}).name == "mpi"
        assert world_of({**SBATCH, **OPEN_MPI}).job == "slurm-71"


class TestAnInteractiveShellOfSlurm:
    @pytest.mark.parametrize(
        "variables", [SALLOC, SALLOC_ON_A_NODE, PTY], ids=["salloc", "salloc on a node", "srun --pty"]
    )
    def test_is_no_rank(self, variables: dict[str, str]) -> None:
        assert environment_for(variables).name == "alone"

    def test_starts_ranks_by_srun(self) -> None:
        """They inherit the shell's variables."""
        in_salloc = {**SRUN, "SLURM_JOB_NAME": "interactive", "SLURM_PTY_PORT": "40733"}
        assert world_of(in_salloc).size == world_of({**PTY, "SLURM_STEP_ID": "1"}).size == 3

    def test_runs_many_things_one_after_the_other(self) -> None:
        """So its job is not that of a run."""
        assert world_of({**SRUN, "SLURM_JOB_NAME": "interactive"}).job is None


class TestMPI:
    @pytest.mark.parametrize("variables", [OPEN_MPI, MPICH], ids=["Open MPI", "MPICH"])
    def test_says_where_a_rank_stands(self, variables: dict[str, str]) -> None:
        world = world_of(variables)
        assert world == World(
            environment="mpi", rank=1, size=2, local_rank=1, local_size=2, port=world.port, started=True
        )
        assert world.port > 1024

    def test_beyond_one_node_needs_an_address(self) -> None:
        two_nodes = {**OPEN_MPI, "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3"}
        with pytest.raises(
            ConfigError,
            match=r"started 4 processes, 2 of them on this machine, and MASTER_ADDR is not set[^$]*-x MASTER_ADDR=",
        ):
            world_of(two_nodes)
        world = world_of({**two_nodes, "MASTER_ADDR": "host1", "MASTER_PORT": "29500"})
        assert (world.node_rank, world.nodes, world.address, world.port) == (1, 2, "host1", 29500)

    @pytest.mark.parametrize("rank, size", [("2", "4"), ("1", "3")], ids=["dealt out", "uneven"])
    def test_in_another_order_is_an_error(self, rank: str, size: str) -> None:
        """A mesh would think that a node's ranks are neighbours."""
        with pytest.raises(ConfigError, match="--map-by slot"):
            world_of({**OPEN_MPI, "OMPI_COMM_WORLD_RANK": rank, "OMPI_COMM_WORLD_SIZE": size, "MASTER_ADDR": "host1"})

    def test_is_not_srun_with_pmi(self) -> None:
        """It sets PMI_RANK for its tasks as well."""
        assert environment_for({**SRUN, "PMI_RANK": "1", "PMI_SIZE": "3"}).name == "slurm"


class TestLSF:
    def test_says_where_a_task_of_jsrun_stands(self) -> None:
        """It sets Open MPI's variables too."""
        world = world_of({**JSRUN, "LSB_RESTART": "Y"})
        assert world == World(
            environment="lsf",
            rank=3,
            size=4,
            local_rank=1,
            local_size=2,
            node_rank=1,
            nodes=2,
            address="h41n08",
            port=world.port,
            started=True,
            job="lsf-612",
            restarts=1,
        )

    def test_names_an_array_job_by_its_index(self) -> None:
        assert world_of({**JSRUN, "LSB_JOBINDEX": "5"}).job == "lsf-612-5"
        assert world_of({**JSRUN, "LSB_JOBINDEX": "0"}).job == "lsf-612"


class TestKubeflow:
    def test_has_a_rank_in_each_pod(self) -> None:
        assert world_of(PYTORCHJOB) == World(
            environment="kubeflow",
            rank=1,
            size=2,
            node_rank=1,
            nodes=2,
            address="fit-master-0",
            port=23456,
            started=True,
        )

    @pytest.mark.parametrize(
        "variables",
        [
            TRAINJOB,
            {**TRAINJOB, "PET_NNODES": "1", "PET_NPROC_PER_NODE": "4"},
            {**PYTORCHJOB, "PET_NPROC_PER_NODE": "4"},
        ],
        ids=["TrainJob of two pods", "TrainJob of four ranks", "PyTorchJob of four ranks a pod"],
    )
    def test_that_counts_on_torchrun_says_so(self, variables: dict[str, str]) -> None:
        with pytest.raises(ConfigError, match=r"was not started by torchrun[^$]*\[torchrun, -m"):
            world_of(variables)

    def test_with_torchrun_is_torchrun(self) -> None:
        assert environment_for({**TRAINJOB, **TORCHRUN}).name == "torchrun"

    def test_of_a_master_that_is_told_of_itself_has_a_rank_in_each_pod(self) -> None:
        """Older operators give it localhost as the address."""
        world = world_of({**PYTORCHJOB, "RANK": "0", "MASTER_ADDR": "localhost"})
        assert (world.local_size, world.nodes) == (1, 2)


@pytest.mark.usefixtures("ray_worker")
class TestRayTrain:
    def test_says_where_a_worker_stands(self) -> None:
        """Workers need not be spread evenly over the nodes."""
        assert world_of(RAY) == World(
            environment="ray",
            rank=2,
            size=3,
            node_rank=1,
            nodes=3,
            address="10.0.0.4",
            port=41233,
            started=True,
        )

    def test_is_not_the_program_that_starts_it(self) -> None:
        assert environment_for({}).name == "alone"


class TestVariablesSetByHand:
    def test_place_a_rank_on_each_node(self) -> None:
        assert world_of(BY_HAND) == World(
            environment="variables", rank=1, size=2, node_rank=1, nodes=2, address="10.0.0.1", port=29511, started=True
        )

    def test_place_all_ranks_on_this_machine(self) -> None:
        world = world_of({**BY_HAND, "MASTER_ADDR": "localhost"})
        assert (world.local_rank, world.local_size, world.node_rank, world.nodes) == (1, 2, 0, 1)

    def test_place_several_ranks_on_a_node(self) -> None:
        world = world_of({**BY_HAND, "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"})
        assert (world.local_rank, world.local_size, world.node_rank, world.nodes) == (1, 4, 1, 2)

    def test_with_a_local_rank_need_its_number(self) -> None:
        with pytest.raises(ConfigError, match="LOCAL_WORLD_SIZE is missing"):
            world_of({**BY_HAND, "LOCAL_RANK": "0"})

    @pytest.mark.parametrize("missing", ["RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"])
    def test_are_all_or_none(self, missing: str) -> None:
        with pytest.raises(ConfigError, match=rf"^[A-Z_]+ and [A-Z_ and]+ set, and {missing} not"):
            world_of({name: value for name, value in BY_HAND.items() if name != missing})

    def test_name_all_that_are_missing(self) -> None:
        with pytest.raises(ConfigError, match="RANK set, and WORLD_SIZE and MASTER_ADDR and MASTER_PORT not"):
            world_of({"RANK": "0"})


class TestContradictions:
    @pytest.mark.parametrize(
        "variables, says",
        [
            ({**BY_HAND, "RANK": "2"}, "rank 2 of 2"),
            ({**TORCHRUN, "RANK": "4"}, "rank 4 of 4"),
            ({**SRUN, "SLURM_PROCID": "3"}, "SLURM_PROCID and SLURM_STEP_NUM_TASKS: rank 3 of 3"),
            ({**MPICH, "PMI_RANK": "3"}, "PMI_RANK and PMI_SIZE: rank 3 of 2"),
            ({**TORCHRUN, "LOCAL_RANK": "2"}, r"LOCAL_RANK and LOCAL_WORLD_SIZE \(torchrun\): rank 2 of 2"),
            ({**TORCHRUN, "GROUP_RANK": "2"}, "GROUP_RANK and GROUP_WORLD_SIZE: rank 2 of 2"),
            ({**LAUNCHED, "LOCAL_WORLD_SIZE": "3"}, r"LOCAL_WORLD_SIZE and WORLD_SIZE \(ours\): rank 2 of 2"),
        ],
        ids=["by hand", "torchrun", "slurm", "mpi", "local rank", "node", "more here than in all"],
    )
    def test_of_ranks_and_their_number(self, variables: dict[str, str], says: str) -> None:
        with pytest.raises(ConfigError, match=says):
            world_of(variables)

    @pytest.mark.parametrize("text", ["one", "-1", "1.0", "٣"], ids=ascii)
    def test_of_text_and_numbers(self, text: str) -> None:
        with pytest.raises(ConfigError, match="variable RANK is"):
            world_of({**TORCHRUN, "RANK": text})

    def test_of_a_port_and_what_ports_there_are(self) -> None:
        with pytest.raises(ConfigError, match="MASTER_PORT is 70000"):
            world_of({**BY_HAND, "MASTER_PORT": "70000"})

    @pytest.mark.parametrize(
        "variables", [SRUN, {**JSRUN, "JSM_NAMESPACE_RANK": "1"}, OPEN_MPI], ids=["slurm", "lsf", "mpi"]
    )
    @pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE"])
    def test_of_a_launcher_and_what_somebody_set(self, variables: dict[str, str], name: str) -> None:
        """``export RANK=$SLURM_PROCID`` in the batch script gives every task rank 0."""
        assert world_of({**variables, "RANK": "1", "WORLD_SIZE": str(world_of(variables).size)}).rank == 1
        with pytest.raises(ConfigError, match=rf"{name} is 9, and [a-z]+ says [^$]*unset {name}"):
            world_of({**variables, name: "9"})

    def test_of_a_step_and_its_nodes(self) -> None:
        with pytest.raises(ConfigError, match="SLURM_NODEID and SLURM_STEP_TASKS_PER_NODE: rank 2 of 2"):
            world_of({**SRUN, "SLURM_NODEID": "2"})


class TestANameInTheEnvironment:
    def test_decides(self) -> None:
        assert environment_for({**SRUN, **BY_HAND, "TREADLE_ENVIRONMENT": "variables"}).name == "variables"

    def test_that_is_unknown_is_an_error(self) -> None:
        with pytest.raises(ConfigError, match="did you mean 'slurm'"):
            environment_for({"TREADLE_ENVIRONMENT": "slrum"})

    def test_asks_for_what_it_needs(self) -> None:
        with pytest.raises(ConfigError, match="OMPI_COMM_WORLD_RANK is missing"):
            world_of({"TREADLE_ENVIRONMENT": "mpi"})


COMPANY = """
from treadle.environments import World

class Farm:
    name = "farm"

    def detect(self, variables):
        return "FARM" in variables

    def world(self, variables):
        return World(environment=self.name, rank=int(variables["FARM"]), size=9, started=True)

    def requeue(self, variables):
        return True

class Partition(Farm):
    name = "slurm"

    def detect(self, variables):
        return False

class Barn: ...
"""


class TestAnInstalledEnvironment:
    @pytest.fixture
    def prints(self, tmp_path: Path):  # type: ignore[no-untyped-def]
        """Runs code where a package with environments is installed."""
        metadata = tmp_path / "acme_farm-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-farm\nVersion: 1.0\n")
        (metadata / "entry_points.txt").write_text(
            "[treadle.environments]\nfarm = acme_farm:Farm\npartition = acme_farm:Partition\n"
        )
        (tmp_path / "acme_farm.py").write_text(COMPANY)

        def run(code: str, **variables: str) -> str:
            done = subprocess.run(
                [sys.executable, "-W", "error", "-c", f"from treadle.environments import *\n{code}"],
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]),
                    "OMP_NUM_THREADS": "1",
                    **variables,
                },
                capture_output=True,
                text=True,
                check=False,
            )
            return done.stdout.strip() or done.stderr

        run.metadata = metadata  # type: ignore[attr-defined]
        return run

    def test_is_asked_before_the_built_in_ones(self, prints) -> None:  # type: ignore[no-untyped-def]
        code = f"""
farm, nobody = environment_for({{**{TORCHRUN!r}, "FARM": "3"}}), environment_for({TORCHRUN!r})
print(farm.name, nobody.name, farm.world({{"FARM": "3"}}).rank, farm.requeue({{}}), isinstance(farm, Environment))
print(type(environment_for({{"TREADLE_ENVIRONMENT": "slurm"}})).__name__)
import sys; print("torch" in sys.modules)
"""
        assert prints(code).splitlines() == ["farm torchrun 3 True True", "Partition", "False"]

    def test_is_not_asked_without_plugins(self, prints) -> None:  # type: ignore[no-untyped-def]
        code = 'print(environment_for({"FARM": "3"}).name)'
        assert prints(code, TREADLE_PLUGINS="none") == "alone"

    def test_that_is_none_is_an_error(self, prints) -> None:  # type: ignore[no-untyped-def]
        (prints.metadata / "entry_points.txt").write_text("[treadle.environments]\nbarn = acme_farm:Barn\n")
        assert "the plugin 'barn' in treadle.environments is a Barn" in prints("environment_for({})")


class TestEveryEnvironment:
    @pytest.mark.parametrize(
        "name", ["ours", "torchrun", "ray", "slurm", "mpi", "lsf", "kubeflow", "variables", "alone"]
    )
    def test_has_a_name_and_fulfils_the_protocol(self, name: str) -> None:
        environment = environment_for({"TREADLE_ENVIRONMENT": name})
        assert environment.name == name
        assert isinstance(environment, Environment)
        assert environment.requeue({}) is False
