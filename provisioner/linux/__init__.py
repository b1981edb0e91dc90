"""The service manager and the kernel: systemd's protocol, priorities, the lock on the state directory."""
