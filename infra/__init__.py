"""The site plan: the Pulumi program that turns stack settings into VMs, devices and a connector.

Only this package knows pulumi, and only `components`, `program`, `stackconfig` and `dynamic` in it;
`manifests`, `node_manifests`, `guest` and `fleet` can be used without the engine.
"""
