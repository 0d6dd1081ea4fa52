"""kvedge's stand-in for the IoT Edge runtime, packed into a .deb for VMs of the local site.

The vendor's packages and images cannot be redistributed, so images of the local site carry this
instead: the same users, units, paths, `config.toml` and `iotedge` commands. It speaks to the hub
as `$edgeAgent` and `$edgeHub` with the vendor's own device client and runs modules with the VM's
docker. It refuses every hub that is not kvedge's emulator.

This room imports nothing of kvedge: it runs inside the VM, where only the Debian package is.
Limits: no TPM, X.509, DPS or nested edge; no workload API for certificates; edgeAgent and edgeHub
are parts of one process and not containers.
"""
