#!/usr/bin/env bash
# The floor: nothing but psql, which validates nothing. `upsert`: binary COPY out of the source, into a
# TEMP table, and from there sorted by key into the target. `copy`: straight into the target.
set -euo pipefail
columns="line_id, order_id, customer_id, part_id, quantity, amount, discount, currency, status, priority,
channel, ordered_at, updated_at, note, net_amount, order_day"
read_day="COPY (SELECT $columns FROM shop.widened
    WHERE updated_at >= '$WINDOW_START' AND updated_at < '$WINDOW_END') TO STDOUT (FORMAT binary)"
psql=("$PSQL" -XqAt -v ON_ERROR_STOP=1 -d)
if [ "$1" = copy ]; then
    "${psql[@]}" "$SOURCE_URL" -c "$read_day" |
        "${psql[@]}" "$TARGET_URL" -c "COPY analytics.line_items ($columns) FROM STDIN (FORMAT binary)"
    exit
fi
updates=$(sed -E 's/(^line_id, |\n)//; s/([a-z_]+)/\1 = excluded.\1/g' <<<"${columns//$'\n'/ }")
"${psql[@]}" "$SOURCE_URL" -c "$read_day" |
    "${psql[@]}" "$TARGET_URL" -c "BEGIN" \
        -c "SET LOCAL work_mem = '256MB'" \
        -c "CREATE TEMP TABLE staged (LIKE analytics.line_items) ON COMMIT DROP" \
        -c "COPY staged ($columns) FROM STDIN (FORMAT binary)" \
        -c "INSERT INTO analytics.line_items ($columns) SELECT $columns FROM staged ORDER BY line_id
            ON CONFLICT (line_id) DO UPDATE SET $updates" \
        -c "COMMIT"
