#!/bin/sh
# Counts in a process that is not the first one, without exec and with a child: LINES.sh FILE.
count=0
while :; do
    count=$((count + 1))
    echo "$count" >"$1.new"
    mv "$1.new" "$1"
    sleep 0.05
done
