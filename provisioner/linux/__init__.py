"""Interfaces to systemd and the kernel: systemd's protocol, priorities, the lock on the state directory."""
