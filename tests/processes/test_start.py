"""How processes find one another: by flags, or as Slurm, Open MPI and a TPU slice tell; and what
they compare then."""

import contextlib
import http.server
import threading

import pytest

JOIN = """
import os, sys
import jax
from ddpm_jax.cli import command
from ddpm_jax.cli.arguments import Parser
from ddpm_jax.cli.shared_flags import Processes, prepare
from ddpm_jax.distributed import hosts

def main(argv):
    prepare(Parser("joins", Processes).parse(argv))
    hosts.check_equal({})
    print("process", jax.process_index(), "of", jax.process_count())
    return 0

sys.exit(command.run(main))
"""
# What tells JAX that this is a VM with a TPU is a device and a library; all after that is as it is
# there.
ON_A_TPU_VM = """
import os
import jax._src.clusters.cloud_tpu_cluster as tpu, jax._src.clusters.cluster as cluster
tpu.running_in_cloud_tpu_vm = cluster.running_in_cloud_tpu_vm = True
if "GCE_METADATA_IP" in os.environ:  # JAX found no device, and so asks no metadata server
    del os.environ["TPU_SKIP_MDS_QUERY"]
"""
NOT_ALIKE = (
    "Process 0 and process 1 were not started alike (train.batch_size is 8 there and 16 here): "
    "start all processes with the same command."
)
PORTS = range(65536 - 2**12, 65536)  # JAX derives one of these from the number of a job


def _slurm(port):
    job = {
        "SLURM_JOB_ID": str(port - PORTS[0]),
        "SLURM_STEP_NODELIST": "127.0.0.1",
        "SLURM_NTASKS": "2",
    }
    return [job | {"SLURM_PROCID": str(p), "SLURM_LOCALID": str(p)} for p in range(2)]


def _open_mpi(port):
    job = {
        "OMPI_MCA_orte_hnp_uri": f"{(port - PORTS[0]) * 2**12}.0;tcp://127.0.0.1:34911",
        "OMPI_COMM_WORLD_SIZE": "2",
    }
    return [
        job | {"OMPI_COMM_WORLD_RANK": str(p), "OMPI_COMM_WORLD_LOCAL_RANK": str(p)}
        for p in range(2)
    ]


def _tpu_on_kubernetes(port):
    common = {
        "TPU_WORKER_HOSTNAMES": "127.0.0.1,127.0.0.1",
        "MEGASCALE_COORDINATOR_ADDRESS": "127.0.0.1",
        "MEGASCALE_NUM_SLICES": "1",
        "MEGASCALE_SLICE_ID": "0",
        "JAX_COORDINATOR_PORT": str(port),
    }
    return [common | {"TPU_WORKER_ID": str(p)} for p in range(2)]


@contextlib.contextmanager
def _metadata_server():
    """Stands for the one that each VM of a TPU slice asks; yields its address. Path /P/... is what
    VM P is told."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            _, worker, *_, key = self.path.split("/")
            values = {
                "agent-worker-number": worker,
                "worker-network-endpoints": "unknown:0:127.0.0.1,unknown:1:127.0.0.1",
                "tpu-env": "ZONE: 'nowhere'",
            }
            self.send_response(200 if key in values else 404)
            self.end_headers()
            self.wfile.write(values.get(key, "").encode())

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def _assert_joined(run):
    outputs = run.succeed()
    for process, output in enumerate(outputs):
        assert f"process {process} of 2" in output


@pytest.mark.full
def test_slurm_tells_all_that_is_needed(command, free_port):
    _assert_joined(command("-c", JOIN, environments=_slurm(free_port(PORTS))))


@pytest.mark.slow
def test_so_does_open_mpi(command, free_port):
    _assert_joined(command("-c", JOIN, environments=_open_mpi(free_port(PORTS))))


@pytest.mark.slow
def test_so_does_a_tpu_slice_under_kubernetes(command, free_port):
    _assert_joined(command("-c", ON_A_TPU_VM + JOIN, environments=_tpu_on_kubernetes(free_port())))


@pytest.mark.slow
def test_so_does_the_metadata_server_of_a_tpu_slice(command, free_port):
    with _metadata_server() as address:
        common = {"JAX_COORDINATOR_PORT": str(free_port()), "NO_PROXY": "127.0.0.1"}
        environments = [common | {"GCE_METADATA_IP": f"{address}/{p}"} for p in range(2)]
        _assert_joined(command("-c", ON_A_TPU_VM + JOIN, environments=environments))


@pytest.mark.slow
def test_the_program_trains_as_slurm_starts_it(tmp_path, train, free_port):
    first, second = train(tmp_path, 2, environments=_slurm(free_port(PORTS)), devices=2).succeed()
    assert "4 cpu devices of 2 processes" in first
    assert "done: 2 steps" in first
    assert "devices" not in second


@pytest.mark.slow
def test_in_a_container_nothing_is_said_of_a_package_that_flags_make_needless(command, free_port):
    own = [[f"--coordinator=127.0.0.1:{free_port()}", "--num_processes=1", "--process_id=0"]]
    (output,) = command(
        "-c", JOIN, environments=[{"KUBERNETES_SERVICE_HOST": "10.0.0.1"}], own=own
    ).succeed()
    assert "process 0 of 1" in output
    assert "package" not in output


@pytest.mark.slow
def test_processes_started_differently_are_refused_by_name(tmp_path, train):
    own = [["--config.train.batch_size=8"], ["--config.train.batch_size=16"]]
    codes, outputs = train(tmp_path / "run", 10, processes=2, own=own).finish()
    assert codes == [2, 2], outputs
    for output in outputs:
        errors = [line for line in output.splitlines() if line.startswith("error: ")]
        assert errors == [f"error: {NOT_ALIKE}"]
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_coordinator_that_does_not_answer_is_told_in_a_sentence(command):
    together = ["--distributed", "--coordinator=127.0.0.1:9", "--num_processes=2", "--process_id=1"]
    (code,), (output,) = command("train.py", *together, "--connect_timeout=2").finish()
    assert code == 1
    assert (
        "error: This process waited 2 s for the coordinator at 127.0.0.1:9: start all processes"
        in output
    )


@pytest.mark.slow
def test_where_nothing_tells_the_processes_apart_the_flags_are_asked_for(command):
    (code,), (output,) = command("train.py", "--distributed").finish()
    assert code == 2
    assert "error: JAX finds no TPU slice, Slurm or Open MPI here" in output
    assert "give --coordinator HOST:PORT, --num_processes N and --process_id I" in output
