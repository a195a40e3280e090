#!/bin/bash
# Has $scratch/carry_over.sh carry the database cluster in the directory $1 over into $2, both beside the running one: the version
# that it is of serves it, without a network and to nobody else, to the version that it shall be of. With $3 it is a
# rehearsal: that service of the application tries the result (`-`: none does), and neither of the two directories is left.
# Says what was found in one line of JSON, or what is wrong.
set -euo pipefail
scratch=${scratch:?} from=$1 to=$2 smoke=${3-}
room=$STACK_DIR/run/upgrade
began=$SECONDS

name() { echo "$PROJECT-upgrade-$1"; }
end() {
    docker rm --force "$(name old)" "$(name new)" > /dev/null 2>&1 || true
    options=(--rm)
    [ -z "$smoke" ] || container clean "$NEW_IMAGE" rm -rf "/var/lib/postgresql/data/$from" "/var/lib/postgresql/data/$to"
    rm -rf "$room" "$scratch"
}
refuse() {
    printf '{"refused": "%s"}\n' "$(printf '%s' "$1" | tr -d '"\\' | tr '\n\t' '  ')"
    exit 1
}
# Whoever serves goes first, while it serves.
container() {
    local role=$1
    shift
    docker run --name "$(name "$role")" --label "com.docker.compose.project=$PROJECT" --label com.docker.compose.oneoff=True \
        --label com.docker.compose.service=upgrade --network none --read-only --cap-drop ALL \
        --security-opt no-new-privileges --user "$OWNER" --tmpfs /tmp:mode=1777,size=64m --shm-size 256m --pids-limit 256 \
        --memory "${MEMORY_MB}m" --cpu-shares "$([ -n "$smoke" ] && echo 128 || echo 1024)" \
        --volume "$DATA:/var/lib/postgresql/data" --volume "$room:/run/upgrade" \
        --volume "$STACK_DIR/services/postgres:/etc/compose-stack:ro" "${options[@]}" "$@"
}
running() { [ "$(docker inspect --format '{{.State.Running}}' "$(name "$1")")" = true ]; }

# What serves is not removed by a slip.
[ -z "$smoke" ] || [ "$from" != pgdata ]
trap end EXIT
trap 'exit 143' TERM INT HUP
docker rm --force "$(name old)" "$(name new)" > /dev/null 2>&1 || true
rm -rf "$room"
install -d -o "${OWNER%:*}" -g "${OWNER#*:}" -m 0711 "$room"

# Ends with this script, however that ends: nothing else holds its standard input open. The lock is that of boot/start.sh:
# never two servers on one directory.
options=(--interactive)
# shellcheck disable=SC2016 # the container's shell expands it
exec {held}> >(exec 2> "$scratch/old"; container old "$OLD_IMAGE" sh -euc 'exec 3<&0 9< "$1"
    flock -n 9 || { echo "another server has it" >&2; exit 1; }
    postgres -D "$1" -c config_file=/etc/compose-stack/current/config/postgresql.conf -c listen_addresses= \
        -c unix_socket_directories=/run/upgrade -c default_transaction_read_only=on < /dev/null &
    server=$!
    { cat <&3 > /dev/null; kill -INT "$server"; } &
    wait "$server"' sh "/var/lib/postgresql/data/$from" > /dev/null)
server=$!
until docker exec "$(name old)" pg_isready --quiet --host=/run/upgrade --username=postgres > /dev/null 2>&1; do
    kill -0 "$server" 2> /dev/null || refuse "The old version does not serve it: $(tail -n 3 "$scratch/old")"
    sleep 0.2
done
options=(--detach)
container new "$NEW_IMAGE" bash -c "$(cat "$scratch/carry_over.sh")" bash "$to" ${smoke:+thorough} > /dev/null
while running new && ! [ -e "$room/ready" ]; do sleep 0.2; done
found=$(docker logs "$(name new)" 2>&1 | tail -n 1)
case $found in
    '{"tables"'*) ;;
    '{"refused"'*) echo "$found"; exit 1 ;;
    *) refuse "The new version ended unexpectedly: $found" ;;
esac
exec {held}>&-
docker wait "$(name old)" > /dev/null
if [ -n "$smoke" ] && [ "$smoke" != - ]; then
    said=$(docker compose --project-directory "$STACK_DIR" run --rm --no-deps --quiet-pull -T --volume "$room:/run/upgrade" \
        --env 'DATABASE_URL=postgresql://app@%2Frun%2Fupgrade:5433/app' --env API_SEED_DEMO_DATA=0 "$smoke" \
        compose-app smoke 2>&1 < /dev/null) || refuse "The application does not work on it: $(tail -n 5 <<< "$said")"
fi
options=()
echo "${found%\}}, \"seconds\": $((SECONDS - began))}"
