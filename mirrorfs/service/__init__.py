"""What makes a mirror a service of the machine: units of systemd, drop-ins for PBS's units, and the mount helper.

It promises that nothing is started by being installed, that an installation which fails leaves nothing behind, and
that what was installed can be taken away without a trace. Everything is done below a root, which need not be that of
the machine.

Read units (what is to lie where, pure), then installation (putting it there and taking it away), remains (what a mirror
has kept on the machine beside that) and manager (telling systemd about it, where it runs).
"""
