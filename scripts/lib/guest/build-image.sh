#!/usr/bin/env bash
# Builds the guest's disk: a Debian root file system on ext4, with its kernel and initrd beside it.
#
#   build-image.sh FOLDER    makes FOLDER/{root.ext4,vmlinuz,initrd} unless they are there already
#
# The result is kept until this file or what it puts into the guest changes.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/../require.sh"
folder=$1
size=1G

recipe=$(cat "$here"/{build-image.sh,workload.py,workload.service} | sha256sum | cut -c -16)
if [ -f "$folder/recipe" ] && [ "$(cat "$folder/recipe")" = "$recipe" ]; then
    echo "the guest's disk is ready: $folder/root.ext4"
    exit 0
fi

require "building the guest's disk" mmdebstrap=mmdebstrap mke2fs=e2fsprogs
mkdir -p "$folder"
rm -f "$folder"/{recipe,root.ext4,vmlinuz,initrd}
tree=$(mktemp -d "$folder/tree.XXXXXX")
trap 'rm -rf "$tree"' EXIT
if [ "$(id -u)" = 0 ]; then
    mode=root as_owner=()
else
    # Without root, files belong to mapped ids, and only the same mapping can read them all.
    mode=unshare as_owner=(mmdebstrap --unshare-helper)
    chmod 777 "$tree"
fi

echo "building the guest's disk: Debian with a cloud kernel, $size ext4 (about two minutes, once)"
# The initrd holds what this guest boots from and no more: it is unpacked by an emulated processor.
mmdebstrap --quiet --mode="$mode" --variant=minbase \
    --include=systemd-sysv,udev,kmod,initramfs-tools,python3 \
    --essential-hook='mkdir -p "$1/etc/initramfs-tools/conf.d" "$1/usr/share/initramfs-tools/modules.d"' \
    --essential-hook='printf "MODULES=list\nCOMPRESS=lz4\n" >"$1/etc/initramfs-tools/conf.d/guest"' \
    --essential-hook='printf "virtio_pci\nvirtio_blk\next4\ncrc32c_generic\n" >"$1/usr/share/initramfs-tools/modules.d/guest"' \
    --include=lz4,linux-image-cloud-amd64 \
    --customize-hook="copy-in $here/workload.py $here/workload.service /root" \
    --customize-hook='install -m 755 "$1/root/workload.py" "$1/usr/local/sbin/forerun-workload"' \
    --customize-hook='install -m 644 "$1/root/workload.service" "$1/etc/systemd/system/forerun-workload.service"' \
    --customize-hook='rm "$1/root/workload.py" "$1/root/workload.service"' \
    --customize-hook='chroot "$1" systemctl enable --quiet forerun-workload.service' \
    --customize-hook='chroot "$1" systemctl mask --quiet getty.target apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_reap.service systemd-timesyncd.service' \
    --customize-hook='echo "/dev/vda / ext4 errors=remount-ro 0 1" >"$1/etc/fstab"' \
    --customize-hook='echo guest >"$1/etc/hostname"' \
    --customize-hook='rm -rf "$1"/usr/share/doc "$1"/usr/share/man "$1"/usr/share/locale' \
    bookworm "$tree/root.tar"

# Device nodes come from devtmpfs at boot, and without root nobody may make them here.
touch "$tree"/{vmlinuz,initrd,root.ext4}
chmod 666 "$tree"/{vmlinuz,initrd,root.ext4}
"${as_owner[@]}" sh -e -c '
    mkdir "$1/root"
    tar -C "$1/root" --exclude="./dev/*" -xf "$1/root.tar"
    cat "$1"/root/boot/vmlinuz-* >"$1/vmlinuz"
    cat "$1"/root/boot/initrd.img-* >"$1/initrd"
    PATH=$PATH:/usr/sbin mke2fs -q -F -t ext4 -L guest -d "$1/root" "$1/root.ext4" "$2"
    rm -rf "$1/root"
' sh "$tree" "$size"
chmod 644 "$tree"/{vmlinuz,initrd,root.ext4}
mv "$tree"/{vmlinuz,initrd,root.ext4} "$folder/"
echo "$recipe" >"$folder/recipe"
