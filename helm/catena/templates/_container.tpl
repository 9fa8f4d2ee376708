{{/* The one container of a room. */}}
{{- define "catena.container" -}}
name: {{ .name }}
image: {{ include "catena.room.image" . }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
command: [python, -m, catena.{{ .name }}]
args: [--config, /etc/catena/catena.yaml, --admin-host, {{ trimAll "[]" .root.Values.listen | quote }}, --admin-port, "9090"]
env: {{- include "catena.env" . | nindent 2 }}
{{- with .room.envFromSecrets }}
envFrom:
  {{- range . }}
  - secretRef: {name: {{ . }}}
  {{- end }}
{{- end }}
ports:
  - {name: grpc, containerPort: 50051, protocol: TCP}
  - {name: admin, containerPort: 9090, protocol: TCP}
  {{- if eq .name "gateway" }}
  - {name: http, containerPort: 8080, protocol: TCP}
  {{- end }}
{{ include "catena.probes" . }}
lifecycle:
  preStop:
    sleep: {seconds: {{ .root.Values.preStopSeconds }}}
resources: {{- include "catena.resources" . | nindent 2 }}
securityContext: {{- include "catena.container.security" . | nindent 2 }}
volumeMounts:
  - {name: config, mountPath: /etc/catena, readOnly: true}
  - {name: home, mountPath: /var/lib/catena}
  - {name: tmp, mountPath: /tmp}
  {{- if .facts.signing }}
  - {name: signing, mountPath: {{ ternary "/var/lib/catena/keys" "/etc/catena-trusted" (eq .name "trainer") }}, readOnly: true}
  {{- end }}
  {{- if .room.sharedMemory }}
  - {name: shm, mountPath: /dev/shm}
  {{- end }}
  {{- if .facts.models }}
  - {name: models, mountPath: /models, readOnly: true}
  {{- end }}
{{- end -}}

{{/* Secrets come as variables, which override the file; HOME is a place that the process may write. */}}
{{- define "catena.env" -}}
{{- $secret := include "catena.secretName" .root -}}
- {name: HOME, value: /tmp}
- name: CATENA__AUTH__SERVICE_TOKEN
  valueFrom: {secretKeyRef: {name: {{ $secret }}, key: service-token}}
{{- if eq .name "gateway" }}
- name: CATENA__GATEWAY__ADMIN_KEY
  valueFrom: {secretKeyRef: {name: {{ $secret }}, key: admin-key}}
{{- end }}
{{- if .root.Values.nats.enabled }}
- name: NATS_TOKEN
  valueFrom: {secretKeyRef: {name: {{ $secret }}, key: nats-token}}
- {name: CATENA__BUS__URL, value: "nats://$(NATS_TOKEN)@{{ include "catena.fullname" .root }}-nats:4222"}
{{- else }}
- name: CATENA__BUS__URL
  {{- include "catena.urlFrom" (dict "root" .root "from" .root.Values.bus "key" "bus-url") | nindent 2 }}
{{- end }}
{{- if include "catena.sql.external" .root }}
- name: CATENA__SQL__URL
  {{- include "catena.urlFrom" (dict "root" .root "from" .root.Values.sql "key" "sql-url") | nindent 2 }}
{{- end }}
{{- range $name, $value := .root.Values.env }}
- {name: {{ $name }}, value: {{ $value | quote }}}
{{- end }}
{{- range $name, $value := .room.env }}
- {name: {{ $name }}, value: {{ $value | quote }}}
{{- end }}
{{- end -}}

{{/* A URL with a password: from the user's secret, else from the chart's. */}}
{{- define "catena.urlFrom" -}}
{{- if .from.existingSecret -}}
valueFrom: {secretKeyRef: {name: {{ .from.existingSecret }}, key: {{ .from.secretKey }}}}
{{- else -}}
valueFrom: {secretKeyRef: {name: {{ include "catena.fullname" .root }}-urls, key: {{ .key }}}}
{{- end -}}
{{- end -}}

{{/*
The admin port answers 200 once the room is open: it decides start and life. Readiness asks what callers use: gRPC
health, which also says "not now" while a model loads or the room drains; for the gateway its HTTP.
*/}}
{{- define "catena.probes" -}}
startupProbe:
  httpGet: {path: /healthz, port: admin}
  periodSeconds: 2
  timeoutSeconds: 2
  failureThreshold: {{ div (add (int .room.startupSeconds) 1) 2 }}
livenessProbe:
  httpGet: {path: /healthz, port: admin}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  {{- if eq .name "gateway" }}
  httpGet: {path: /healthz, port: http}
  {{- else }}
  grpc: {port: 50051}
  {{- end }}
  periodSeconds: 5
  timeoutSeconds: 2
  failureThreshold: 2
{{- end -}}

{{- define "catena.resources" -}}
{{- $resources := deepCopy .room.resources -}}
{{- if gt (int .room.gpu.count) 0 -}}
{{- $limits := $resources.limits | default dict -}}
{{- $_ := set $limits .room.gpu.resource (int .room.gpu.count) -}}
{{- $_ := set $resources "limits" $limits -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end -}}

{{- define "catena.container.security" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities: {drop: [ALL]}
seccompProfile: {type: RuntimeDefault}
{{- end -}}
