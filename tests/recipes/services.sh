# What the machine of a recipe has besides this service; sourced inside, see machine.py.

# The publisher's images: small disks, under the names that the pages use.
images() {
    qemu-img create -q -f qcow2 /srv/images/debian-12.qcow2 2G
    for name in web-41 web-42 debian-12; do
        qemu-io -f qcow2 -c "write -P ${#name} 0 1M" -c "write -P $((RANDOM % 255)) 1M 64k" /srv/images/debian-12.qcow2 >/dev/null
        [ $name = debian-12 ] || cp /srv/images/debian-12.qcow2 /srv/images/$name.qcow2
    done
    (cd /srv/images && sha256sum ./*.qcow2 | sed 's| \./| |' >SHA256SUMS)
    nginx -c /recipe/nginx.conf
}

minio() {
    mkdir -p /run/minio/certs
    cp /recipe/server.pem /run/minio/certs/public.crt
    cp /recipe/server.key /run/minio/certs/private.key
    MINIO_ROOT_USER=publisher MINIO_ROOT_PASSWORD=publisher-secret MINIO_BROWSER=off MINIO_UPDATE=off \
        setsid minio server --quiet --address :9000 --certs-dir /run/minio/certs /var/lib/minio \
        >/var/log/minio.log 2>&1 </dev/null &
    until curl -sf https://minio.example.org:9000/minio/health/ready; do
        kill -0 $! || exit 1
        sleep 0.1
    done
}

libvirt() {
    mkdir -p /run/libvirt
    printf '%s\n' 'stdio_handler = "file"' 'user = "root"' 'group = "root"' 'cgroup_controllers = []' 'namespaces = []' \
        'security_driver = "none"' >/etc/libvirt/qemu.conf
    printf '%s\n' 'auth_unix_rw = "none"' 'auth_unix_ro = "none"' >/etc/libvirt/libvirtd.conf
    setsid libvirtd >/var/log/libvirtd.log 2>&1 </dev/null &
    until virsh -q version >/dev/null 2>&1; do
        kill -0 $! || exit 1
        sleep 0.1
    done
}

# The host as first-guest.md leaves it, without its guest.
service() {
    cat >/etc/libvirt-volume-provisioner/config.toml <<'END'
[sources.images]
plugin = "http"
urls = ["https://images.example.org/"]

[targets.files]
plugin = "file"
directory = "/var/lib/libvirt/images"
overcommit = true

END
    mkdir -p ~/.config
    (umask 077 && lvp token create admin --role admin >~/.config/lvp-token 2>/dev/null)
    echo 'token_file = "~/.config/lvp-token"' >~/.config/lvp.toml
    systemctl start libvirt-volume-provisioner
}

# A volume and a guest that is shut off.
guest() {
    lvp job submit https://images.example.org/web-41.qcow2 web-01 2 --wait >/dev/null
    cat >web-01.xml <<'END'
<domain type="qemu">
  <name>web-01</name>
  <memory unit="MiB">64</memory>
  <os>
    <type arch="x86_64" machine="pc">hvm</type>
  </os>
  <devices>
    <disk type="file" device="disk">
      <driver name="qemu" type="raw"/>
      <source file="/var/lib/libvirt/images/web-01.raw"/>
      <target dev="vda" bus="virtio"/>
    </disk>
  </devices>
</domain>
END
    virsh -q define web-01.xml
}
