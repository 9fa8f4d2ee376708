{{/* The small built-in broker: one server, its store on a volume. For more, run NATS's own chart and set bus.url. */}}
{{- define "catena.nats.config" -}}
server_name: {{ include "catena.fullname" . }}-nats
listen: {{ printf "%s:4222" .Values.listen | quote }}
http: {{ printf "%s:8222" .Values.listen | quote }}
lame_duck_duration: 30s
authorization { token: $NATS_TOKEN }
jetstream { store_dir: /data, max_file_store: {{ .Values.nats.maxStoreBytes | int64 }}, sync_interval: {{ .Values.nats.syncInterval }} }
{{- end -}}

{{- define "catena.nats.pod" -}}
metadata:
  labels: {{- include "catena.labels" . | nindent 4 }}
  annotations:
    checksum/config: {{ include "catena.nats.config" .root | sha256sum }}
spec:
  serviceAccountName: {{ include "catena.fullname" .root }}
  automountServiceAccountToken: false
  enableServiceLinks: false
  terminationGracePeriodSeconds: 60
  securityContext: {{- include "catena.pod.security" .root | nindent 4 }}
  {{- with .root.Values.nats.nodeSelector }}
  nodeSelector: {{- toYaml . | nindent 4 }}
  {{- end }}
  containers:
    - {{- include "catena.nats.container" . | nindent 6 }}
  volumes:
    - {name: config, configMap: {name: {{ include "catena.room.fullname" . }}}}
{{- end -}}

{{- define "catena.nats.container" -}}
name: nats
image: {{ include "catena.image" (dict "root" .root "image" .root.Values.nats.image "repository" "nats") }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
command: [nats-server, --config, /etc/nats/nats.conf]
env:
  - name: NATS_TOKEN
    valueFrom: {secretKeyRef: {name: {{ include "catena.secretName" .root }}, key: nats-token}}
ports:
  - {name: client, containerPort: 4222, protocol: TCP}
  - {name: monitor, containerPort: 8222, protocol: TCP}
startupProbe:
  httpGet: {path: /healthz, port: monitor}
  periodSeconds: 2
  failureThreshold: 60
livenessProbe:
  httpGet: {path: "/healthz?js-enabled-only=true", port: monitor}
  periodSeconds: 15
  timeoutSeconds: 5
readinessProbe:
  httpGet: {path: "/healthz?js-server-only=true", port: monitor}
  periodSeconds: 5
  timeoutSeconds: 5
resources: {{- toYaml .root.Values.nats.resources | nindent 2 }}
securityContext: {{- include "catena.container.security" . | nindent 2 }}
volumeMounts:
  - {name: config, mountPath: /etc/nats, readOnly: true}
  - {name: data, mountPath: /data}
{{- end -}}
