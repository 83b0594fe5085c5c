"""Real devices over ssh: what they are called, and how models run, are timed and watched on them."""

from actx.exporter.devices.address import Address
from actx.exporter.devices.config import Device, find_devices

__all__ = ["Address", "Device", "find_devices"]
