# Arguments: an image, the usr directory of a CRIU, a directory to work in, and a program, which becomes pid 100.
# Tells its own pid when the container stands.
set -e
I=$1 U=$2 W=$3
shift 3
read -r OUTSIDE _ < /proc/self/stat
mount --rbind "$I" "$W/root"
cd "$W/root"
mount -t proc proc proc
mount --rbind /dev dev
# CRIU keeps what it found out about the kernel on a tmpfs only.
mount -t tmpfs tmpfs mnt
mkdir mnt/old mnt/usr mnt/scratch
mount --rbind "$U" mnt/usr
mount --bind "$W" mnt/scratch
pivot_root . mnt/old
umount -l mnt/old
cd /
# One descriptor from outside would fail every dump.
CLEAN='for fd in /proc/$$/fd/*; do fd=${fd##*/}; if [ "$fd" -gt 2 ]; then eval "exec $fd>&-"; fi; done; exec "$@"'
if [ $# -gt 0 ]; then
    echo 99 > /proc/sys/kernel/ns_last_pid
    (exec setsid bash -c "$CLEAN" clean "$@" < /dev/null > /mnt/scratch/log 2>&1) &
else
    # CRIU's own processes must not meet those that it makes again.
    echo 30000 > /proc/sys/kernel/ns_last_pid
fi
echo "$OUTSIDE"
exec sleep infinity
