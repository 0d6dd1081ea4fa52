"""Tiny guests: boot sectors that need no system image."""

import asyncio
import os

import pytest

from kvedge.site.host.running import Crew

_SECTORS = {
    # Powers off by ACPI: SeaBIOS puts q35's PM1a control at 0x604 (mov dx,0x604; mov ax,0x2000).
    "poweroff": b"\xba\x04\x06\xb8\x00\x20\xef\xf4\xeb\xfd",
    # Sleeps for ever: hlt; jmp -3.
    "sleep": b"\xf4\xeb\xfd",
}


@pytest.fixture
def boot_disk(tmp_path):
    """Return a function that writes a boot disk by the name of what it does."""

    def write(name):
        file = tmp_path / f"{name}.img"
        file.write_bytes(_SECTORS[name].ljust(510, b"\0") + b"\x55\xaa")
        os.truncate(file, 2**20)
        return file

    return write


@pytest.fixture
async def crew():
    """A crew whose tasks are cancelled at the end of the test."""
    async with asyncio.TaskGroup() as group:
        made = []

        class Recording(Crew):
            def start(self, name, work):
                task = super().start(name, work)
                made.append(task)
                return task

        yield Recording(group)
        for task in made:
            task.cancel()
