# shellcheck shell=sh
# One TCP connection through the card on the tap, by which a stream goes to the host and back, and fio on the second disk,
# while the back-end of the card is killed 20 times, and then that of the disk: the connection is not reset, no byte is wrong
# or missing on either way, and the disk has what was written to it.
if [ -z "${NET_AGENT:-}" ]; then
    skipped "kills" "there is no network; see scripts/linux --help, --net"
elif ! second_disk; then
    skipped "kills" "there is no second disk"
else
    # shellcheck source-path=SCRIPTDIR source=network.sh
    . "$1/network.sh"
    ready_card
    before=$FAILURES
    rm -f /tmp/verified

    # One job after the other, not as fast as they can be: an emulated machine has to do all the rest beside them.
    verify_disk() {
        rounds=0
        until [ -e /tmp/enough ]; do
            fio --name=killed --filename=/dev/vdb --size=1M --numjobs=2 --offset_increment=1M --rw=randwrite --rate_iops=40 \
                --bsrange=4k-32k --ioengine=libaio --iodepth=16 --direct=1 --fsync=16 --thread --verify=crc32c \
                --verify_fatal=1 --do_verify=1 --group_reporting --randrepeat=0 || return
            rounds=$((rounds + 1))
            echo $rounds >/tmp/rounds
        done
    }
    # kills NAME DEVICE TIMES: tests/linux/kills, on the host.
    kills() {
        kills_last=$(ask kills "$2" "$3" | tee /tmp/kills | tail -n 1)
        # One more than it was killed, if the machine stands still just when a restart is asked for.
        kills_restarts=${kills_last#"$3 killed, "} kills_restarts=${kills_restarts%" restarts, running"}
        if [ "$kills_restarts" -ge "$3" ] 2>/dev/null; then ok "$1"; else failed "$1" "$kills_last" && cat /tmp/kills; fi
        echo "  ($2: $kills_last)"
    }

    echo 0 >/tmp/rounds
    begin_echo
    verify_disk >/tmp/fio 2>&1 && : >/tmp/verified &
    kills "20 kills of the card's back-end" net0 20
    kills "5 kills of the disk's back-end" disk1 5
    end_echo "over kills"
    if [ -e /tmp/verified ]; then
        positive "fio verified what it wrote meanwhile" "$(cat /tmp/rounds)"
    else
        failed "fio verified what it wrote meanwhile" "it failed after $(cat /tmp/rounds) rounds:" && cat /tmp/fio
    fi
    echo "  ($(cat /tmp/parts) times 100 kB there and back, $(cat /tmp/rounds) rounds of fio)"
    explain "$before"
fi
