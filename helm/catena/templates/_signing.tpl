{{/*
A key pair with which the trainer signs adapters: EC P-256, as PEM, in base64. Helm makes private keys but does not
give their public halves; a certificate of the key holds it: the 64 bytes after the fixed head of a P-256
SubjectPublicKeyInfo (RFC 5480), which is 27 bytes long, so that its base64 and theirs join without padding.
*/}}
{{- define "catena.signing.pair" -}}
{{- $private := genPrivateKey "ecdsa" -}}
{{- $certificate := (genSelfSignedCertWithKey "catena" nil nil 3650 $private).Cert -}}
{{- $der := regexReplaceAll "-----[A-Z ]+-----|\\s" $certificate "" | b64dec -}}
{{- $head := "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE" -}}
{{- $point := index (splitn (b64dec $head) 2 $der) "_1" | substr 0 64 -}}
{{- $public := printf "-----BEGIN PUBLIC KEY-----\n%s%s\n-----END PUBLIC KEY-----\n" $head (b64enc $point) -}}
signing.pem: {{ b64enc $private }}
signing.pub: {{ b64enc $public }}
{{- end -}}
