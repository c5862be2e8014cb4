W=$1; F=$2; shift 2
criu() { timeout -s KILL 10 "$@" -D "$W/image" -W "$W" -v2 --no-default-config --manage-cgroups=ignore \
    --file-locks --ghost-limit 64M $F; }
until_true() { i=0; while ! eval "$1"; do i=$((i+1)); [ $i -lt 300 ] || return 1; sleep 0.01; done; }
# The socket is not for the shell, and a shell gives /dev/null to what runs beside it.
exec 3<&0 < /dev/null
mkdir "$W/image" || exit 12
echo 99 > /proc/sys/kernel/ns_last_pid || exit 11
setsid /bin/sh -c 'trap ": > \"$0/answer\"; exit 0" USR1; sleep 1000 & echo $! > "$0/ready"; while :; do wait; done' \
    "$W" <&3 3<&- > /dev/null 2>&1 &
P=$!
exec 3<&-
until_true '[ -s "$W/ready" ]' || { echo "setsid, sleep or sh did not start"; exit 12; }
read -r C < "$W/ready"
# CRIU's own pids must not meet those that are brought back.
echo 20000 > /proc/sys/kernel/ns_last_pid || exit 11
criu "$@" dump -t "$P" -o dump.log -s || exit 13
: > "$W/dumped"
kill -KILL "$C" "$P"
# This is their init: they are gone when they were waited for, which a shell does with any child of its own.
until_true 'wait; ! [ -e "/proc/$P" ] && ! [ -e "/proc/$C" ]' || exit 12
criu "$@" restore -d -o restore.log --pidfile pid || exit 14
: > "$W/restored"
kill -USR1 "$P" && until_true '[ -e "$W/answer" ]' || exit 15
