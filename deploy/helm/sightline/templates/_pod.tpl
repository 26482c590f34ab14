{{/* What server and worker have in common: (dict "root" $ "component" "server" "command" "serve" "resources" ...) */}}
{{- define "sightline.pod" -}}
{{- $ := .root -}}
metadata:
  labels:
    {{- include "sightline.labels" $ | nindent 4 }}
    app.kubernetes.io/component: {{ .component }}
    {{- with $.Values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    checksum/config: {{ include (print $.Template.BasePath "/configmap.yaml") $ | sha256sum }}
    checksum/keys: {{ include (print $.Template.BasePath "/secret.yaml") $ | sha256sum }}
    {{- with $.Values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "sightline.fullname" $ }}
  automountServiceAccountToken: false
  enableServiceLinks: false # variables named SIGHTLINE_* would be taken for settings
  # The sleep before the stop, the answers under way, and a rest for engines to end.
  terminationGracePeriodSeconds: {{ add $.Values.drainSeconds 20 }}
  {{- with $.Values.imagePullSecrets }}
  imagePullSecrets: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $.Values.runtimeClassName }}
  runtimeClassName: {{ . }}
  {{- end }}
  {{- with $.Values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  securityContext:
    runAsNonRoot: true
    runAsUser: 10001
    runAsGroup: 10001
    fsGroup: 10001
    fsGroupChangePolicy: OnRootMismatch
    seccompProfile: {type: RuntimeDefault}
  containers:
    - name: {{ .component }}
      image: "{{ $.Values.image.repository }}:{{ default $.Chart.AppVersion $.Values.image.tag }}"
      imagePullPolicy: {{ $.Values.image.pullPolicy }}
      args:
        - {{ .command }}
        - /etc/sightline/sightline.yaml
        {{- if and $.Values.openToAnyone (eq .component "server") }}
        - --open-to-anyone
        {{- end }}
      {{- with $.Values.env }}
      env: {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- if or (include "sightline.hasHashes" $) $.Values.existingSecret }}
      envFrom:
        {{- if include "sightline.hasHashes" $ }}
        - secretRef: {name: {{ include "sightline.fullname" $ }}-keys}
        {{- end }}
        {{- with $.Values.existingSecret }}
        - secretRef: {name: {{ . }}}
        {{- end }}
      {{- end }}
      {{- if eq .component "server" }}
      {{- $scheme := ternary "HTTPS" "HTTP" (ne $.Values.tls.secretName "") }}
      ports:
        - {name: http, containerPort: 8000}
        - {name: metrics, containerPort: 9090}
      startupProbe:
        httpGet: {path: /health, port: http, scheme: {{ $scheme }}}
        periodSeconds: 2
        failureThreshold: {{ div $.Values.startup.seconds 2 }}
      livenessProbe:
        httpGet: {path: /health, port: http, scheme: {{ $scheme }}}
        periodSeconds: 10
        timeoutSeconds: 5
        failureThreshold: 6
      readinessProbe:
        httpGet: {path: /ready, port: http, scheme: {{ $scheme }}}
        periodSeconds: 2
        timeoutSeconds: 5
        failureThreshold: 1
      lifecycle:
        preStop:
          sleep: {seconds: 5} # until no node sends anything here any more
      {{- end }}
      securityContext:
        allowPrivilegeEscalation: false
        readOnlyRootFilesystem: true
        capabilities: {drop: [ALL]}
      resources: {{- toYaml .resources | nindent 8 }}
      volumeMounts:
        - {name: config, mountPath: /etc/sightline, readOnly: true}
        - {name: data, mountPath: /var/lib/sightline}
        - {name: tmp, mountPath: /tmp}
        {{- if $.Values.tls.secretName }}
        - {name: tls, mountPath: /etc/sightline-tls, readOnly: true}
        {{- end }}
        {{- with $.Values.volumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
  volumes:
    - name: config
      configMap: {name: {{ include "sightline.fullname" $ }}}
    - name: data
      {{- if $.Values.persistence.enabled }}
      persistentVolumeClaim: {claimName: {{ include "sightline.claim" $ }}}
      {{- else }}
      emptyDir: {}
      {{- end }}
    - name: tmp
      emptyDir: {sizeLimit: 1Gi}
    {{- with $.Values.tls.secretName }}
    - name: tls
      secret: {secretName: {{ . }}, defaultMode: 0440}
    {{- end }}
    {{- with $.Values.volumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with $.Values.nodeSelector }}
  nodeSelector: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $.Values.tolerations }}
  tolerations: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $.Values.affinity }}
  affinity: {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}
