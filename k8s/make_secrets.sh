#!/bin/sh
# Write the secrets of compose.yaml into k8s/secrets: random, once, and never over one that is there.
# Containers of several users read the files, so the folder keeps others of this machine out and not each file's mode.
set -eu
folder="${1:-$(dirname "$0")/secrets}"
mkdir -p "$folder"
chmod 700 "$folder"

random() { od -An -N "$1" -tx1 /dev/urandom | tr -d ' \n'; }
put() {
    if [ -e "$folder/$1" ]; then
        cat > /dev/null
    else
        (umask 022 && cat > "$folder/.$1.new" && mv "$folder/.$1.new" "$folder/$1")
        echo "wrote $folder/$1"
    fi
}

random 24 | put postgres_password
random 24 | put grafana_password
if [ ! -e "$folder/object_store.json" ] || [ ! -e "$folder/bucket_credentials" ]; then
    rm -f "$folder/object_store.json" "$folder/bucket_credentials"
    id="$(random 10)"
    key="$(random 32)"
    put object_store.json <<JSON
{"identities": [{"name": "mlflow", "credentials": [{"accessKey": "$id", "secretKey": "$key"}],
  "actions": ["Admin", "Read", "Write", "List", "Tagging"]}]}
JSON
    put bucket_credentials <<INI
[default]
aws_access_key_id = $id
aws_secret_access_key = $key
INI
fi
