"""The VM host: one node that runs VMIs as QEMU processes and kvedge's own pods as local processes.

It stands in for kubelet, virt-handler, virt-launcher and CDI's importer of the local site; the
API server, virt-api and virt-controller around it are the real ones. It decides how an accepted
object becomes a process, a disk or a listener, and tells the truth about it in status. What it
cannot do it refuses with a condition and a reason.

Limits: one node, user networking, virtio disks, no migration, hotplug, snapshots, TPM or secure
boot; no cgroups, so requests count for scheduling alone; pods run as the site's own user.
"""
