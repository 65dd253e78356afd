"""Environment variables by which libraries would change a result without the config showing it."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from hfexp.core.machine import visible_devices

OFF = ("false", "0", "no", "off", "n", "f")
"""Values that mean false, in lower case (`accelerate.utils.str_to_bool`)."""
UNUSED_OF_MLFLOW = ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID")
"""Variables by which MLflow would write into another run or experiment."""


@dataclass(frozen=True)
class Variable:
    """An environment variable that a library reads, and a check of whether it agrees with the config."""

    name: str
    agrees: Callable[[str, Mapping[str, Any], bool], bool]
    """Function of the value in lower case, `trainer.args`, and whether the run uses an accelerator."""
    instead: str
    """What the user should write in the config instead."""


def _off(value: str, args: Mapping[str, Any], accelerator: bool) -> bool:
    return value in OFF


def _tf32(value: str, args: Mapping[str, Any], accelerator: bool) -> bool:
    return not accelerator or args.get("tf32") is (value not in OFF)


NO_SUCH_STRATEGY = "launch=single, launch=ddp or launch=fsdp"
PRECISION = "trainer.args.bf16=true or trainer.args.fp16=true"
TF32 = "trainer.args.tf32=true or trainer.args.tf32=false"
FPMATH = "trainer.args.bf16=true (or nothing, for float32)"

VARIABLES = (
    Variable(
        "ACCELERATE_MIXED_PRECISION",
        lambda value, args, _: value == "no" or bool(args.get("fp16") or args.get("bf16")),
        PRECISION,
    ),
    Variable(
        "ACCELERATE_DYNAMO_BACKEND",
        lambda value, args, _: value == "no" or _compiles(args),
        "trainer.args.torch_compile=true trainer.args.torch_compile_backend=NAME",
    ),
    Variable(
        "ACCELERATE_DYNAMO_MODE",
        lambda value, args, _: value in ("default", str(args.get("torch_compile_mode"))) or not _compiles(args),
        "trainer.args.torch_compile_mode=NAME",
    ),
    Variable(
        "ACCELERATE_USE_CPU",
        lambda value, args, accelerator: value in OFF or not accelerator,
        "trainer.args.use_cpu=true",
    ),
    Variable(
        "ACCELERATE_TORCH_DEVICE",
        lambda value, args, accelerator: value == "cpu" and not accelerator,
        "CUDA_VISIBLE_DEVICES, which chooses a device, or trainer.args.use_cpu=true",
    ),
    Variable("ACCELERATE_USE_FSDP", _off, NO_SUCH_STRATEGY),
    Variable("ACCELERATE_USE_DEEPSPEED", _off, NO_SUCH_STRATEGY),
    Variable("ACCELERATE_USE_MEGATRON_LM", _off, NO_SUCH_STRATEGY),
    Variable("ACCELERATE_USE_PARALLELISM_CONFIG", _off, NO_SUCH_STRATEGY),
    Variable("ACCELERATE_USE_SAGEMAKER", _off, NO_SUCH_STRATEGY),
    Variable("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", lambda *values: values[0] in OFF or _tf32(*values), TF32),
    Variable("NVIDIA_TF32_OVERRIDE", _tf32, TF32),
    # In other modes, oneDNN rounds the factors of float32 matrix products and convolutions on a CPU.
    Variable("ONEDNN_DEFAULT_FPMATH_MODE", lambda value, *_: value == "strict", FPMATH),
    Variable("DNNL_DEFAULT_FPMATH_MODE", lambda value, *_: value == "strict", FPMATH),
)  # fmt: skip
"""Variables that accelerate 1.15, transformers 5.23 and torch 2.14 read whenever they train.

Not listed are settings that have no effect alone or on a `Trainer` (`ACCELERATE_GRADIENT_ACCUMULATION_STEPS`,
`FSDP_*`, `ACCELERATE_DEEPSPEED_*`, `MEGATRON_LM_*`, and the file of `accelerate config`, which `accelerate launch`
turns into these variables), and those that only set paths or verbosity (`TRANSFORMERS_*`, `HF_HOME`, `TORCH_HOME`).
"""


def find_foreign_settings(args: Mapping[str, Any]) -> list[str]:
    """Return a message for each environment variable that contradicts the config, which is what a run records.

    Args:
        args: `trainer.args`.
    """
    accelerator = bool(visible_devices()) and not args.get("use_cpu")
    return [
        f"the environment variable {variable.name}={os.environ[variable.name]} would change the training "
        f"without appearing in the config; unset it and use instead: {variable.instead}"
        for variable in VARIABLES
        if variable.name in os.environ
        and not variable.agrees(os.environ[variable.name].strip().lower(), args, accelerator)
    ]


def drop_unused_mlflow_variables(say: Callable[[str], None]) -> None:
    """Remove the environment variables by which MLflow would write into another run or experiment, and say so."""
    ignored = [f"{name}={os.environ.pop(name)}" for name in UNUSED_OF_MLFLOW if name in os.environ]
    if ignored:
        say(
            f"ignoring the environment variable{'s' if len(ignored) > 1 else ''} {' and '.join(ignored)}: each run of "
            "hfexp is a new MLflow run; set its experiment with tracking.experiment=NAME (or MLFLOW_EXPERIMENT_NAME)"
        )


def _compiles(args: Mapping[str, Any]) -> bool:
    return any(args.get(f"torch_compile{part}") for part in ("", "_mode", "_backend"))
