# shellcheck shell=sh
# One TCP connection through the card on the tap, by which a stream goes to the host and back while another back-end takes
# the card over, 20 times: the connection is not reset, no byte is wrong or missing on either way.
if [ -z "${NET_AGENT:-}" ]; then
    skipped "swaps of the card" "there is no network; see scripts/linux --help, --net"
else
    # shellcheck source-path=SCRIPTDIR source=network.sh
    . "$1/network.sh"
    ready_card
    before=$FAILURES
    # (As words: what is being written may be read as nothing.)
    went_on() { [ "$(cat /tmp/parts)" != "$parts" ]; }
    begin_echo
    swaps=0
    while [ $swaps -lt 20 ]; do
        # Each is of a card that works.
        parts=$(cat /tmp/parts)
        await went_on && swapped net0 || break
        swaps=$((swaps + 1))
    done
    equal "20 swaps of the card's back-end" 20 $swaps
    end_echo "over swaps"
    echo "  ($(cat /tmp/parts) times 100 kB there and back; the last swap: $(cat /tmp/swapped))"
    explain "$before"
fi
