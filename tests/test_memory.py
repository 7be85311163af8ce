"""Out of memory: messages of each device, a real case on this CPU, and refusals in advance."""

import errno

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import host_memory, memory
from ddpm_jax.distributed import pmap
from ddpm_jax.errors import FailureError
from ddpm_jax.training.exhaustion import remedies_of_a_step

GIB = 2**30


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        ("RESOURCE_EXHAUSTED: Out of memory allocating 51539607552 bytes.", 48 * GIB),  # CPU
        # GPU
        ("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 17179869184 bytes.", 16 * GIB),
        ("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 10.00GiB.", 10 * GIB),
        (
            "RESOURCE_EXHAUSTED: Failed to allocate request for 1.50GiB (1610612736B) on device "
            "ordinal 0: BufferAssignment OOM Debugging.\nTotal bytes: 5",
            1610612736,
        ),
        ("INTERNAL: CUDNN_STATUS_ALLOC_FAILED in dnn.cc(1234)", None),
        ("INTERNAL: the library cublas failed: CUBLAS_STATUS_ALLOC_FAILED", None),
        ("INTERNAL: Failed call to cuMemAlloc: CUDA_ERROR_OUT_OF_MEMORY: out of memory", None),
        (  # TPU, at run time and at compile time
            "RESOURCE_EXHAUSTED: Attempting to allocate 9.77G. That was not possible. There are "
            "7.75G free.",
            round(9.77 * GIB),
        ),
        (
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory "
            "space hbm. Used 20.10G of 15.48G hbm. Exceeded hbm capacity by 4.62G.",
            round(20.10 * GIB),
        ),
        ("std::bad_alloc", None),
    ],
)
def test_the_words_of_every_device_are_known_and_their_number_is_read(words, asked):
    for error in (jax.errors.JaxRuntimeError(words), RuntimeError(words), ValueError(words)):
        assert memory.is_exhaustion(error)
        assert memory.requested_bytes(error) == asked


@pytest.mark.parametrize(
    "error",
    [
        ValueError(
            'RESOURCE_EXHAUSTED: Error writing "/x/d/0": No space left on device '
            "[os_error_code='28']"
        ),
        jax.errors.JaxRuntimeError("INVALID_ARGUMENT: Executable expected shape f32[3]"),
        jax.errors.JaxRuntimeError("UNAVAILABLE: connection reset by peer"),
        FailureError("Out of memory: said already."),
        OSError(errno.ENOSPC, "No space left on device"),
        KeyError("out of memory"),
    ],
)
def test_a_full_disk_a_defect_and_what_is_said_already_are_something_else(error):
    assert not memory.is_exhaustion(error)
    with pytest.raises(type(error)), memory.explained("a test"):
        raise error


def test_an_array_of_the_host_that_is_too_large_is_a_sentence_with_what_there_is():
    words = (
        r"^Out of memory: a test asked for 8,192\.0 TiB, and this process can have .*iB.* To do: "
        r"make less\.$"
    )
    with pytest.raises(FailureError, match=words), memory.explained("a test", "make less"):
        np.zeros(2**53, np.uint8)
    with (
        pytest.raises(FailureError, match="asked for more than there was"),
        memory.explained("a test"),
    ):
        raise MemoryError
    with (
        pytest.raises(FailureError, match="asked for more than there was"),
        memory.explained("a test"),
    ):
        raise OSError(errno.ENOMEM, "Cannot allocate memory")


def test_a_buffer_that_no_machine_has_is_a_sentence():
    with (
        pytest.raises(FailureError, match=r"a test asked for 1,024\.0 TiB"),
        memory.explained("a test"),
    ):
        jnp.zeros((2**40, 2**8)).block_until_ready()


def _squares(_, x):
    return jnp.sort(x @ x.T, axis=1)[:, 0]  # [B, B] in between


@pytest.mark.parametrize(
    ("mapped", "lead"),
    [(pmap.map_examples(_squares), (1,)), (memory.checked(jax.jit(_squares)), ())],
)
def test_a_program_whose_arrays_in_between_no_machine_has_is_refused_before_it_runs(mapped, lead):
    np.testing.assert_array_equal(
        mapped(0.0, np.ones((*lead, 3, 1), np.float32)).reshape(-1), np.ones(3)
    )
    large = np.ones((*lead, 2**22, 1), np.float32)
    with (
        pytest.raises(FailureError, match=r"asked for (64|128|192|256)\.\d TiB"),
        memory.explained("a test"),
    ):
        mapped(0.0, large)


def test_a_program_is_compiled_once_for_its_check_and_its_call(caplog):
    program = memory.checked(jax.jit(lambda shared, x: jnp.tanh(x) * 3 + shared))
    with jax.log_compiles():
        for _ in range(3):
            jax.block_until_ready(program(1.0, np.ones(17, np.float32)))
    assert (
        len(
            [
                record
                for record in caplog.records
                if "Finished XLA compilation" in record.getMessage()
            ]
        )
        == 1
    )


def test_a_state_larger_than_the_memory_there_is_is_refused_and_a_smaller_one_passes():
    memory.check(1000, "the state", "less")
    with pytest.raises(FailureError, match=r"Out of memory: the state asked for .* To do: less\."):
        memory.check(host_memory.total() + 1, "the state", "less")


@pytest.mark.parametrize(
    ("done", "says"),
    [
        (
            {},
            "lower train.batch_size (now 128), compute it in parts, one after the other, with "
            "optimizer.accumulate_steps=2 or more, compute activations again in the backward pass "
            "with model.remat=blocks, or ",
        ),
        (
            {"devices": 8, "accumulate_steps": 4, "remat": "blocks"},
            "with optimizer.accumulate_steps=8 or more, split the state over the devices with "
            "parallel=fsdp, or take",
        ),
        ({"devices": 128, "parallel": "fsdp", "remat": "blocks"}, "or take a smaller network"),
    ],
)
def test_remedies_are_those_that_are_left(done, says):
    made = {
        "batch_size": 128,
        "accumulate_steps": 1,
        "remat": "none",
        "parallel": "pmap",
        "devices": 1,
    } | done
    assert says in remedies_of_a_step(**made)
    if made["devices"] == 128:
        assert remedies_of_a_step(**made).startswith("or take")
