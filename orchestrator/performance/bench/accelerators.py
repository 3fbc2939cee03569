"""What is read of accelerators, by vendor: data. A vendor more is a table more.

Facts are those of ``attach.facts.CardFacts``; a sampler tells those that have a unit in ``UNITS``.
A factor makes a number of what is read, in the fact's unit; 0 leaves it text.
"""

from __future__ import annotations

from typing import Any

#: Drivers that only a program asks: what it prints, a line a card. ``facts``: fact -> (query,
#: factor). ``loop``: words that make it print again and again, MS milliseconds apart.
PRINTED: list[dict[str, Any]] = [
    {
        "vendor": "NVIDIA",
        "present": "proc/driver/nvidia",
        "program": "nvidia-smi",
        "ask": "--query-gpu=",
        "words": ["--format=csv,noheader,nounits"],
        "loop": ["--loop-ms=MS"],
        "facts": {
            "name": ("name", 0.0),
            "place": ("pci.bus_id", 0.0),
            "driver": ("driver_version", 0.0),
            "memory_bytes": ("memory.total", 2.0**20),
            "memory_used_bytes": ("memory.used", 2.0**20),
            "busy_percent": ("utilization.gpu", 1.0),
            "clock_mhz": ("clocks.sm", 1.0),
            "clock_most_mhz": ("clocks.max.sm", 1.0),
            "power_w": ("power.draw", 1.0),
            "temperature_c": ("temperature.gpu", 1.0),
            "throttled": ("clocks_throttle_reasons.active", 0.0),
            "link_speed": ("pcie.link.gen.current", 0.0),
            "link_speed_most": ("pcie.link.gen.max", 0.0),
            "link_width": ("pcie.link.width.current", 1.0),
            "link_width_most": ("pcie.link.width.max", 1.0),
            "memory_busy_percent": ("utilization.memory", 1.0),
        },
        # Bits of its throttle reasons that slow a card down (nvml.h); idle (1) does not.
        "throttled": [
            (0x4, "power limit"),
            (0x8, "hardware slowdown"),
            (0x20, "thermal limit"),
            (0x40, "hardware thermal limit"),
            (0x80, "power brake"),
        ],
        # What stands before a number, so that it is understood.
        "before": {"link_speed": "generation ", "link_speed_most": "generation "},
        # Links between cards: what prints them, the line of a card, the line of a link that works.
        "links": {
            "name": "NVLink",
            "words": ["nvlink", "-s"],
            "card": r"GPU (\d+):",
            "link": r"\s+Link \d+: ([\d.]+) GB/s",
        },
    },
]
#: Programs that know more than the kernel's files, where they are: JSON. ``list``: what lists the
#: cards, and where they stand in it; ``each``: what is asked of a card, by its ID.
DOCUMENTS: list[dict[str, Any]] = [
    {
        "list": ["xpu-smi", "discovery", "-j"],
        "cards": "device_list",
        "id": "device_id",
        "place": "pci_bdf_address",
        "each": [
            ["xpu-smi", "discovery", "-d", "ID", "-j"],
            ["xpu-smi", "stats", "-d", "ID", "-j"],
        ],
        # Figures as a list of names and values.
        "named": {"in": "device_level", "name": "metrics_type", "value": "value"},
        "facts": {
            "name": ("device_name", 0.0),
            "memory_bytes": ("memory_physical_size_byte", 1.0),
            "memory_used_bytes": ("XPUM_STATS_MEMORY_USED", 2.0**20),
            "busy_percent": ("XPUM_STATS_GPU_UTILIZATION", 1.0),
            "power_w": ("XPUM_STATS_POWER", 1.0),
            "temperature_c": ("XPUM_STATS_GPU_CORE_TEMPERATURE", 1.0),
        },
    },
]
#: By vendor id: the vendor, and ``facts`` -> (files below the card's device, factor); ``rates`` ->
#: the same of files that count, per second; ``idle``: files that count milliseconds without work.
SYSFS: dict[str, dict[str, Any]] = {
    "0x1002": {
        "vendor": "AMD",
        "facts": {
            "name": (("product_name",), 0.0),
            "memory_bytes": (("mem_info_vram_total",), 1.0),
            "memory_used_bytes": (("mem_info_vram_used",), 1.0),
            "busy_percent": (("gpu_busy_percent",), 1.0),
            "memory_busy_percent": (("mem_busy_percent",), 1.0),
            "clock_mhz": (("hwmon/hwmon*/freq1_input",), 1e-6),
            "power_w": (("hwmon/hwmon*/power1_average", "hwmon/hwmon*/power1_input"), 1e-6),
            "temperature_c": (("hwmon/hwmon*/temp1_input",), 1e-3),
        },
        # A table of the firmware's (the kernel's kgd_pp_interface.h), by format and content: where
        # the reasons' bits lie, or counters that grow while one slows the card down.
        "metrics": {
            "file": "gpu_metrics",
            "bits": {"1.3": 112, "2.2": 120, "2.3": 120, "2.4": 120},
            "reasons": [
                (0xFF, "power limit"),
                (0xFF << 16, "current limit"),
                (0xFFF << 32, "thermal limit"),
                (0xF << 44, "hot regulator or processor"),
            ],
            "growing": {
                "3.0": [
                    (228, "hot processor"),
                    (232, "power limit"),
                    (236, "power limit"),
                    (240, "power limit"),
                    (244, "thermal limit"),
                    (248, "thermal limit"),
                    (252, "thermal limit"),
                ]
            },
        },
    },
    "0x8086": {
        "vendor": "Intel",
        "facts": {
            "clock_mhz": (("drm/card*/gt/gt0/rps_act_freq_mhz", "tile0/gt0/freq0/act_freq"), 1.0),
            "clock_most_mhz": (
                ("drm/card*/gt/gt0/rps_max_freq_mhz", "tile0/gt0/freq0/max_freq"),
                1.0,
            ),
            "temperature_c": (("hwmon/hwmon*/temp1_input", "hwmon/hwmon*/temp2_input"), 1e-3),
        },
        "rates": {"power_w": (("hwmon/hwmon*/energy1_input",), 1e-6)},
        "idle": (
            "drm/card*/gt/gt0/rc6_residency_ms",
            "tile0/gt0/gtidle/idle_residency_ms",
        ),
        # Files that say "1" while a reason slows the card down; the name's end is the reason.
        "throttled": ("drm/card*/gt/gt0/throttle_reason_*", "tile0/gt0/freq0/throttle/reason_*"),
        # The region that shows the card's memory, if the firmware's resizable BAR is on: no file
        # of the driver says it.
        "memory_bar": 2,
    },
}
#: Of every vendor: the link as it is and at most.
LINK = {
    "link_speed": (("current_link_speed",), 0.0),
    "link_speed_most": (("max_link_speed",), 0.0),
    "link_width": (("current_link_width",), 1.0),
    "link_width_most": (("max_link_width",), 1.0),
}
#: Links between cards that the kernel tells: a node a card, its links by type, their rate in MB/s.
TOPOLOGY = {"nodes": "sys/class/kfd/kfd/topology/nodes", "types": {"11": "XGMI"}}
#: Facts that a sampler tells, and their units there.
UNITS = {
    "busy_percent": "% GPU busy",
    "memory_busy_percent": "% GPU memory busy",
    "clock_mhz": "GPU MHz",
    "memory_used_bytes": "GPU bytes",
}
#: Further ones of drivers that only a program asks: the kernel's sensors have those of others.
PRINTED_UNITS = {**UNITS, "power_w": "W", "temperature_c": "C"}

#: All of it, as ``attach/node_facts.py`` and ``sampler.py`` get it.
TABLES: dict[str, Any] = {
    "printed": PRINTED,
    "documents": DOCUMENTS,
    "sysfs": SYSFS,
    "link": LINK,
    "topology": TOPOLOGY,
    "units": UNITS,
    "printed_units": PRINTED_UNITS,
}
