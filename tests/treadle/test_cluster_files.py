"""What clusters write for a run to read, and the command that asks one to start a job again."""

import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from treadle.environments import environment_for
from treadle.environments.slurm import first_host, tasks_per_node
from treadle.errors import ConfigError, TreadleWarning

JSRUN = {
    "LSB_JOBID": "612",
    "JSM_NAMESPACE_RANK": "0",
    "JSM_NAMESPACE_SIZE": "4",
    "JSM_NAMESPACE_LOCAL_RANK": "0",
    "JSM_NAMESPACE_LOCAL_SIZE": "2",
}
TORCHRUN = {"TORCHELASTIC_RUN_ID": "none"}
MPIRUN = {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_LOCAL_RANK": "0"}


class TestTheFirstNodeOfASlurmJob:
    @pytest.mark.parametrize(
        "nodelist, name",
        [
            ("vm", "vm"),
            ("node[03-05,9]", "node03"),
            ("node[098-101],a", "node098"),
            ("a1,b[2-3]-ib,c", "a1"),
            ("b[2-3]-ib", "b2-ib"),
            ("rack[1-2]n[08-09]", "rack1n08"),
            ("gpu-eu.west[7]", "gpu-eu.west7"),
        ],
    )
    def test_is_read_as_scontrol_writes_it_out(self, nodelist: str, name: str) -> None:
        assert first_host(nodelist) == name

    @given(st.lists(st.integers(0, 999), min_size=1, max_size=5), st.integers(1, 4))
    def test_keeps_its_zeros(self, numbers: list[int], width: int) -> None:
        texts = [f"{number:0{width}}" for number in numbers]
        assert first_host(f"n[{','.join(texts)}]") == f"n{texts[0]}"


class TestTheTasksOfItsNodes:
    @pytest.mark.parametrize("text, counts", [("2", [2]), ("2(x3),1", [2, 2, 2, 1]), ("1(x2),4,1(x1)", [1, 1, 4, 1])])
    def test_are_written_out(self, text: str, counts: list[int]) -> None:
        assert tasks_per_node({"SLURM_STEP_TASKS_PER_NODE": text, "SLURM_TASKS_PER_NODE": "9"}) == counts

    @pytest.mark.parametrize("text", ["", "two", "2(x)", "2x3", "2,,1"])
    def test_in_another_form_are_an_error(self, text: str) -> None:
        with pytest.raises(ConfigError, match="srun writes it as numbers of tasks"):
            tasks_per_node({"SLURM_STEP_TASKS_PER_NODE": text})


class TestTheHostsOfAnLSFJob:
    @pytest.mark.parametrize(
        "hosts",
        ["batch3 1 c1 2 c2 2", "c1 2 c2 2", "c1 1 c2 1"],
        ids=["with a launch node", "of several slots", "of one slot"],
    )
    def test_name_the_node_of_rank_0(self, hosts: str) -> None:
        variables = {**JSRUN, "LSB_MCPU_HOSTS": hosts}
        assert environment_for(variables).world(variables).address == "c1"


class TestRequeueing:
    @pytest.fixture
    def job(self, tmp_path: Path) -> dict[str, str]:
        """Variables of a job whose scontrol writes down what it is asked."""
        scontrol = tmp_path / "scontrol"
        scontrol.write_text(f"""#!{sys.executable}
import sys
if sys.argv[2] == "72":
    sys.exit("scontrol: error: Requested operation is presently disabled for job 72")
open({str(tmp_path / "asked")!r}, "w").write(" ".join(sys.argv[1:]))
""")
        scontrol.chmod(0o755)
        return {"PATH": str(tmp_path), "SLURM_JOB_ID": "71", "SLURM_PROCID": "0", "SLURM_NTASKS": "1"}

    @pytest.mark.parametrize(
        "inside", [{}, TORCHRUN, MPIRUN, {"TREADLE_LAUNCHED": "1"}], ids=["srun", "torchrun", "mpi", "ours"]
    )
    def test_asks_slurm_whoever_counts_the_ranks(
        self, job: dict[str, str], inside: dict[str, str], tmp_path: Path
    ) -> None:
        variables = {**job, **inside}
        assert environment_for(variables).requeue(variables)
        assert (tmp_path / "asked").read_text() == "requeue 71"

    def test_of_the_last_task_of_an_array_is_not_of_the_array(self, job: dict[str, str], tmp_path: Path) -> None:
        """``scontrol requeue 71`` would start all of its tasks again."""
        variables = {**job, "SLURM_ARRAY_JOB_ID": "71", "SLURM_ARRAY_TASK_ID": "4"}
        assert environment_for(variables).requeue(variables)
        assert (tmp_path / "asked").read_text() == "requeue 71_4"

    def test_that_is_refused_warns(self, job: dict[str, str]) -> None:
        variables = {**job, "SLURM_JOB_ID": "72"}
        with pytest.warns(TreadleWarning, match=r"treadle\[requeue\].*presently disabled.*#SBATCH --requeue"):
            assert not environment_for(variables).requeue(variables)

    def test_without_scontrol_warns(self, job: dict[str, str], tmp_path: Path) -> None:
        """In a container, often."""
        variables = {**job, "PATH": str(tmp_path / "nothing")}
        with pytest.warns(TreadleWarning, match=r"treadle\[requeue\].*scontrol is not on the path"):
            assert not environment_for(variables).requeue(variables)
