"""The layers of the first run, from the bottom up: what each step means where it fails. Data."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.profile.first_run import FirstRunStep

LOG = "on {node}: journalctl --dmesg"


@dataclass(frozen=True)
class Layer:
    """A step. ``means``: what its failure means; ``advice``: what to do, in general."""

    name: FirstRunStep
    title: str
    means: str
    advice: str
    #: Seconds; on a card that was never used before, kernels are compiled.
    limit_s: float
    #: It needs most of a device's memory, or its collectives: not beside a served model.
    disturbs: bool = False


LAYERS = (
    Layer(
        "present",
        "the machine has it",
        "A device, its driver or its firmware is not as the profile says; nothing above can work.",
        "Fix the first of these.",
        60,
    ),
    Layer(
        "torch",
        "torch sees the devices",
        "torch does not find the devices that the kernel has: the runtime between them, or the"
        " rights of the account that Ray runs as.",
        "On {node}: ls -l /dev/dri; the account needs its groups (render, video); " + LOG,
        120,
    ),
    Layer(
        "commands",
        "the profile's commands",
        "A program that the profile names does not find the hardware.",
        "Run it by hand on {node}.",
        60,
    ),
    Layer(
        "memory",
        "free memory above 0",
        "vLLM would take the device for full and not start: either another process holds its"
        " memory, or the call by which vLLM asks the driver does not work here.",
        "See what else uses the device on {node}; else another version of the kernels' wheel or of"
        " the driver.",
        90,
    ),
    Layer(
        "product",
        "a product in half precision",
        "The device computes wrong, or its kernels do not compile. Every answer would be wrong.",
        "Another version of the compute runtime; then power and cooling of the card; " + LOG,
        180,
    ),
    Layer(
        "int4",
        "a product with 4-bit weights",
        "The kernel that quantized models run through computes wrong on this device.",
        "Another version of the kernels' wheel or of the compute runtime. Models that are not"
        " quantized do not use it.",
        180,
    ),
    Layer(
        "triton",
        "Triton compiles and runs",
        "Triton cannot compile for this device, or what it compiles computes wrong; vLLM's"
        " attention runs through it.",
        "The image needs Triton for this device, and where it compiles a helper, g++ and headers.",
        240,
    ),
    Layer(
        "pressure",
        "cat and stack while memory is full",
        "Results are wrong once memory is short (compute-runtime#973 is such a fault): a model that"
        " fills the device would answer nonsense at some time, without an error.",
        "Another version of the compute runtime; until then a lower"
        " serving.args.gpu-memory-utilization.",
        180,
        disturbs=True,
    ),
    Layer(
        "collective",
        "all-reduce between all devices",
        "Ranks cannot exchange results: a model on several devices would hang at its start"
        " (oneCCL#209, #215).",
        "ray.env of the profile names the interface and the algorithm (for oneCCL, CCL_ALLREDUCE:"
        " ring); orchestrate probe --only link; the firewall of the nodes.",
        180,
        disturbs=True,
    ),
    Layer(
        "layer",
        "one layer of the model through vLLM",
        "vLLM does not run this model's operations on this device, whatever its weights are.",
        "Its last line says which; serving.args (attention backend, dtype), then another model.",
        400,
        disturbs=True,
    ),
    Layer(
        "model",
        "a small model answers",
        "All parts work alone, and a whole model does not answer right on one device.",
        "Its answer shows whether it computes wrong (nonsense) or only says it in other words"
        " (verification.prompts).",
        600,
        disturbs=True,
    ),
    Layer(
        "serving",
        "the profile's model answers",
        "One device works alone; what is left is the model over all of them.",
        "orchestrate verify; the server's log: journalctl -b -u vllm",
        300,
    ),
)
