#!/bin/sh
# Make a certificate authority and, from it, one certificate for the five services, into the
# directory that is named: ca.crt, tls.crt, tls.key. Again changes nothing while it is valid for a
# day or more. For one machine and for trying; the authority's key is thrown away.
set -eu
cd "$1"
if openssl x509 -in tls.crt -noout -checkend 86400 >/dev/null 2>&1; then exit 0; fi
umask 077
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

names=DNS:localhost,IP:127.0.0.1
for service in ingest metering vending control reporting; do
  names=$names,DNS:$service,DNS:$service.wattvend.svc,DNS:$service.wattvend.svc.cluster.local
done
cat > "$scratch/openssl.cnf" <<END
[req]
distinguished_name = name
prompt = no
[name]
CN = wattvend
[authority]
basicConstraints = critical, CA:true
keyUsage = critical, keyCertSign
subjectKeyIdentifier = hash
[service]
basicConstraints = critical, CA:false
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = $names
END
for key in ca tls; do
  openssl ecparam -name prime256v1 -genkey -noout -out "$scratch/$key.key"
done
openssl req -config "$scratch/openssl.cnf" -extensions authority -x509 -new -days 365 -sha256 \
  -subj "/CN=wattvend authority" -key "$scratch/ca.key" -out "$scratch/ca.crt"
openssl req -config "$scratch/openssl.cnf" -new -key "$scratch/tls.key" -out "$scratch/tls.csr"
openssl x509 -req -in "$scratch/tls.csr" -days 365 -sha256 -CA "$scratch/ca.crt" \
  -CAkey "$scratch/ca.key" -CAserial "$scratch/serial" -CAcreateserial \
  -extfile "$scratch/openssl.cnf" -extensions service -out "$scratch/tls.crt"
chmod 644 "$scratch/ca.crt" "$scratch/tls.crt"
cp -p "$scratch/ca.crt" "$scratch/tls.key" .
cp -p "$scratch/tls.crt" .
