"""libvirt-volume-provisioner: puts disk images on the block volumes of a libvirt/KVM host."""

__version__ = "0.1.0"
