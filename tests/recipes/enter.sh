#!/bin/bash
# enter.sh WORK PROJECT [MINIO]: run WORK/out/script as on a machine of its own. Started in new namespaces (mount, network, process, host name).
# Its files are this machine's, but nothing that it changes stays: they are an overlay on the file system in WORK/disk.img.
set -e
work=$1 project=$2
mount --make-rprivate /
hostname kvm-7
ip link set lo up
# The service fetches from public addresses only, unless it is told otherwise. Nothing leaves this network.
ip address add 93.184.215.14/32 dev lo
mkdir "$work/disk"
mount -o loop "$work/disk.img" "$work/disk"
mkdir "$work"/disk/{upper,work,root,images,state}
root=$work/disk/root
mount -t overlay overlay -o "lowerdir=/,upperdir=$work/disk/upper,workdir=$work/disk/work" "$root"
mount --rbind /dev "$root/dev"
mount --rbind /sys "$root/sys"
[ ! -e "$root/dev/kvm" ] || mount --bind /dev/null "$root/dev/kvm"  # the guests' processor is emulated, as on any machine
mount -t proc proc "$root/proc"
mount -t tmpfs tmpfs "$root/run"
mkdir -p "$root/recipe" "$root$project" "$root/run/lock" "$root/run/lvm" "$root/srv/images"
mount --bind "$work/out" "$root/recipe"
mount --bind "$project" "$root$project"
# As in a new installation. The folders with volumes and images are on a file system, not on an overlay, as on a real host.
for folder in /etc/libvirt-volume-provisioner /etc/libvirt /var/log/libvirt /var/cache/libvirt /home; do
    mkdir -p "$root$folder"
    mount -t tmpfs tmpfs "$root$folder"
done
mount --bind "$work/../libvirt-cache" "$root/var/cache/libvirt"  # what libvirt found out about QEMU takes it a minute
mkdir -p "$root/home/operator" "$root/var/lib/libvirt" "$root/var/lib/libvirt-volume-provisioner"
mount -t tmpfs tmpfs "$root/var/lib/libvirt"
mkdir "$root/var/lib/libvirt/images"
mount --bind "$work/disk/images" "$root/var/lib/libvirt/images"
mount --bind "$work/disk/state" "$root/var/lib/libvirt-volume-provisioner"
for name in lvp python; do ln -sf "$project/.venv/bin/$name" "$root/usr/local/bin/$name"; done
for name in systemctl journalctl; do install -m 755 "/$project/tests/recipes/$name" "$root/usr/local/bin/$name"; done
if [ -n "$3" ]; then  # its folder may be a mount, which the overlay does not show
    touch "$root/usr/local/bin/minio"
    mount --bind "$3" "$root/usr/local/bin/minio"
fi
cat "$work/out/ca.pem" >>"$root/etc/ssl/certs/ca-certificates.crt"
printf '%s\n' '127.0.0.1 localhost kvm-7 kvm-7.example.org' '93.184.215.14 images.example.org minio.example.org' >"$root/etc/hosts"
exec chroot "$root" /usr/bin/env -i HOME=/home/operator PATH=/usr/local/bin:/usr/bin:/usr/sbin:/bin:/sbin LANG=C.UTF-8 \
    SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt "PROJECT=$project" /bin/bash /recipe/script
