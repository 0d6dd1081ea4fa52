"""The local site: a complete Kubernetes + KubeVirt control plane, hub and registry on one machine.

`control` is what the command line calls (up, down, status), from outside the site's namespaces.
`supervising` runs inside them and keeps the parts of `parts` alive; `bootstrap` fills the API
server; `namespace`, `publishing` and `pki` make the ground that they stand on; `state` is what
others read. The VM host (`host`) is a part like any other and has a room of its own.
"""
