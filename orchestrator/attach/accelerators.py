"""What is read of accelerators, by vendor: data. A vendor more is a table more.

The facts' names are those of ``facts.CardFacts``. A factor makes a number of what is read, in the
fact's unit; 0 leaves it text.
"""

from __future__ import annotations

#: What nvidia-smi is asked, and where a value goes: fact -> (its query, factor); 0: text.
NVIDIA = {
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
}
#: Bits of nvidia-smi's throttle reasons that slow a card down (nvml.h); idle (1) does not.
NVIDIA_THROTTLED = {
    0x4: "power limit",
    0x8: "hardware slowdown",
    0x20: "thermal limit",
    0x40: "hardware thermal limit",
    0x80: "power brake",
}
#: By vendor id: the vendor, and facts -> (files below the card's device, factor); 0: text.
SYSFS = {
    "0x1002": (
        "AMD",
        {
            "name": (("product_name",), 0.0),
            "memory_bytes": (("mem_info_vram_total",), 1.0),
            "memory_used_bytes": (("mem_info_vram_used",), 1.0),
            "busy_percent": (("gpu_busy_percent",), 1.0),
            "clock_mhz": (("hwmon/hwmon*/freq1_input",), 1e-6),
            "power_w": (("hwmon/hwmon*/power1_average", "hwmon/hwmon*/power1_input"), 1e-6),
            "temperature_c": (("hwmon/hwmon*/temp1_input",), 1e-3),
        },
    ),
    "0x8086": (
        "Intel",
        {
            "clock_mhz": (
                ("drm/card*/gt/gt0/rps_act_freq_mhz", "tile0/gt0/freq0/act_freq"),
                1.0,
            ),
            "clock_most_mhz": (
                ("drm/card*/gt/gt0/rps_max_freq_mhz", "tile0/gt0/freq0/max_freq"),
                1.0,
            ),
            "temperature_c": (("hwmon/hwmon*/temp1_input", "hwmon/hwmon*/temp2_input"), 1e-3),
        },
    ),
}
#: Of every vendor: the link as it is and at most.
LINK = {
    "link_speed": (("current_link_speed",), 0.0),
    "link_speed_most": (("max_link_speed",), 0.0),
    "link_width": (("current_link_width",), 1.0),
    "link_width_most": (("max_link_width",), 1.0),
}
#: Files that say "1" while a reason slows Intel's cards down; the name's end is the reason.
THROTTLED = ("drm/card*/gt/gt0/throttle_reason_*", "tile0/gt0/freq0/throttle/reason_*")
#: By vendor whose driver has no file with it: the region that shows a card's memory, if the
#: firmware's resizable BAR is on.
MEMORY_BAR = {"Intel": 2}

#: All of it, as ``node_facts.py`` gets it.
TABLES = {
    "nvidia": NVIDIA,
    "nvidia_throttled": list(NVIDIA_THROTTLED.items()),
    "sysfs": SYSFS,
    "link": LINK,
    "throttled": THROTTLED,
    "memory_bar": MEMORY_BAR,
}
