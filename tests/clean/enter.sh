# The first process of a clean run's namespaces: mount the tree, make it the root, run the command, reap children.
#   enter.sh LOWERDIRS UPPER SCRATCH [WHERE=FOLDER...] -- COMMAND...
# When this process ends, the kernel ends all processes of the namespace and removes the mounts.
set -euo pipefail
lower=$1 upper=$2 scratch=$3
shift 3
root=$scratch/root
mount --make-rprivate /
mount -t overlay overlay -o "lowerdir=$lower,upperdir=$upper,workdir=$scratch/work" "$root"
mount -t proc proc "$root/proc"
mount -t sysfs sys "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
# Devices, such as loop devices, are shared with the machine. Terminals and shared memory are separate.
mount --bind /dev "$root/dev"
mkdir -p "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=666,mode=620,gid=5 devpts "$root/dev/pts"
if [ -c "$root/dev/ptmx" ]; then mount --bind "$root/dev/pts/ptmx" "$root/dev/ptmx"; fi
mount -t tmpfs -o mode=1777 shm "$root/dev/shm"
mount -t tmpfs -o mode=755 run "$root/run"
mkdir -p "$root/run/lock"
if [ -d /lib/modules ]; then
    mkdir -p "$root/usr/lib/modules"
    mount -o bind,ro /lib/modules "$root/usr/lib/modules"
fi
for name in resolv.conf hosts; do
    rm -f "$root/etc/$name"
    cat "/etc/$name" >"$root/etc/$name"
done
while [ "$1" != -- ]; do
    mkdir -p "$root${1%%=*}"
    mount --bind "${1#*=}" "$root${1%%=*}"
    shift
done
shift
hostname clean
cd "$root"
pivot_root . .
umount -l .
cd /root
# shellcheck disable=SC2016
exec bash -c 'trap "exit 143" TERM; "$@" & wait $!' enter "$@"
